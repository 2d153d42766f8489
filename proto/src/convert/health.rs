use std::time::SystemTime;

use anyport_model::{
    fault::Fault,
    names::{OriginName, PoolName},
    opinion::Opinion,
    resource::{Pool, Weight},
    weights::{Factors, OriginHealth, OriginWeight, PoolState, PoolWeights},
};

use crate::v1;

/// The weights of one pool, as edges get them.
pub fn write_pool_weights(name: &PoolName, weights: &PoolWeights) -> v1::PoolWeights {
    v1::PoolWeights {
        pool: name.to_string(),
        state: write_state(weights.state).into(),
        origins: weights
            .origins
            .iter()
            .map(|origin| v1::OriginWeight {
                origin: origin.name.to_string(),
                weight: origin.weight.as_f64(),
                health: write_health(origin.health).into(),
            })
            .collect(),
        panic: weights.panic,
    }
}

/// Edges are told what comes of factors, and not the factors.
pub fn read_pool_weights(wire: v1::PoolWeights) -> Result<(PoolName, PoolWeights), Fault> {
    let fault = |field: &str, problem: &dyn std::fmt::Display| Fault::new(field, problem);
    let name: PoolName = wire.pool.parse().map_err(|e| fault("pool", &e))?;
    let state = v1::PoolState::try_from(wire.state).map_err(|e| fault("state", &e))?;
    let origins = wire
        .origins
        .into_iter()
        .map(|origin| {
            let name: OriginName = origin.origin.parse().map_err(|e| fault("origin", &e))?;
            let health = v1::HealthState::try_from(origin.health);
            Ok(OriginWeight {
                name,
                health: read_health(health.map_err(|e| fault("health", &e))?),
                weight: Weight::new(origin.weight).map_err(|e| fault("weight", &e))?,
                factors: Factors::NONE,
            })
        })
        .collect::<Result<_, Fault>>()?;
    let weights = PoolWeights {
        state: read_state(state),
        panic: wire.panic,
        origins,
    };
    Ok((name, weights))
}

/// What `status` shows of a pool: its weights with addresses and reasons.
/// `opinion` gives what is held of an origin that is probed.
pub fn write_pool_health<'a>(
    pool: &Pool,
    weights: &PoolWeights,
    opinion: impl Fn(&OriginName) -> Option<&'a Opinion>,
) -> v1::PoolHealth {
    let places = weights.origins.iter().zip(weights.shares()).enumerate();
    let origins = places.map(|(place, (weight, share))| {
        let origin = pool.origins.get(place);
        let origin = origin.filter(|origin| origin.name == weight.name);
        let shown = v1::OriginHealth {
            origin: weight.name.to_string(),
            address: origin
                .map(|origin| origin.address.to_string())
                .unwrap_or_default(),
            health: write_health(weight.health).into(),
            weight: weight.weight.as_f64(),
            share,
            factors: origin.map(|origin| write_factors(origin.weight, weight.factors)),
            ..v1::OriginHealth::default()
        };
        match opinion(&weight.name) {
            Some(opinion) => with_opinion(shown, opinion),
            None => shown,
        }
    });
    v1::PoolHealth {
        pool: pool.name.to_string(),
        state: write_state(weights.state).into(),
        origins: origins.collect(),
        panic: weights.panic,
    }
}

fn with_opinion(shown: v1::OriginHealth, opinion: &Opinion) -> v1::OriginHealth {
    v1::OriginHealth {
        reason: opinion.reason.clone(),
        since: Some(opinion.since.into()),
        probe_seconds: opinion.last_pass.map(|took| took.as_secs_f64()),
        held_until: opinion.held_until.map(SystemTime::into),
        recent_downs: opinion.recent_downs,
        ..shown
    }
}

fn write_factors(declared: Weight, factors: Factors) -> v1::WeightFactors {
    v1::WeightFactors {
        declared: declared.as_f64(),
        slow_start: factors.slow_start.as_f64(),
        load: factors.load.as_f64(),
        latency: factors.latency.as_f64(),
    }
}

fn write_state(state: PoolState) -> v1::PoolState {
    match state {
        PoolState::Unmonitored => v1::PoolState::Unmonitored,
        PoolState::Healthy => v1::PoolState::Healthy,
        PoolState::Degraded => v1::PoolState::Degraded,
        PoolState::Down => v1::PoolState::Down,
    }
}

fn read_state(state: v1::PoolState) -> PoolState {
    match state {
        v1::PoolState::Unspecified | v1::PoolState::Unmonitored => PoolState::Unmonitored,
        v1::PoolState::Healthy => PoolState::Healthy,
        v1::PoolState::Degraded => PoolState::Degraded,
        v1::PoolState::Down => PoolState::Down,
    }
}

fn write_health(health: OriginHealth) -> v1::HealthState {
    match health {
        OriginHealth::Unknown => v1::HealthState::Unknown,
        OriginHealth::Up => v1::HealthState::Up,
        OriginHealth::Down => v1::HealthState::Down,
        OriginHealth::Disabled => v1::HealthState::Disabled,
        OriginHealth::Unmonitored => v1::HealthState::Unmonitored,
    }
}

fn read_health(health: v1::HealthState) -> OriginHealth {
    match health {
        v1::HealthState::Unspecified | v1::HealthState::Unknown => OriginHealth::Unknown,
        v1::HealthState::Up => OriginHealth::Up,
        v1::HealthState::Down => OriginHealth::Down,
        v1::HealthState::Disabled => OriginHealth::Disabled,
        v1::HealthState::Unmonitored => OriginHealth::Unmonitored,
    }
}
