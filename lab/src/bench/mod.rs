//! Anyport beside HAProxy and nginx, and all of them beside no proxy at all.
//!
//! What is compared is what a client gets and what it costs the proxy's host: [`Measure`]. Times of
//! one machine mean little on another, so what counts are factors between contenders.
//!
//! What makes the comparison fair:
//!
//! - **Alike.** Every contender runs in the same network (client, proxy and origin, each in a
//!   namespace of its own), with the same kernel settings, two threads or processes, and the
//!   configuration that a competent administrator would give it. The load, and the address it is put
//!   on, are the same; only plain routing has the origin's own.
//! - **Alone.** A contender's network and processes are made for its turn and gone after it, so none
//!   inherits TIME_WAIT sockets or memory, and no other one is there meanwhile.
//! - **In turns.** A round is one turn of each; the machine may be slower in one round than in
//!   another, so factors are taken within a round, and the median over the rounds is what counts.
//!
//! Plain routing is the limit of both transports: nothing on the proxy's host touches a byte. HAProxy
//! has no UDP, so that nginx is what others are measured against there.
//!
//! What it cannot tell: all three hosts share the processors of one machine, so rates also depend on
//! what the client and the origin use. The processor time of a proxy is that of its processes; work
//! that the kernel does for it in soft interrupts is charged to whatever was running.

mod contender;
mod document;
mod error;
mod interrupt;
mod limits;
mod load;
mod measure;
mod options;
mod plan;
mod process;
mod programs;
pub(crate) mod proxy;
mod results;
mod setting;
mod stage;
mod table;
mod usage;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub use contender::Contender;
pub use document::Document;
pub use error::{Error, Result};
pub use interrupt::interrupted;
pub use limits::allow_descriptors;
pub use measure::{Better, Measure};
pub use options::{Options, Prepared};
pub use plan::Plan;
pub use programs::Programs;
pub use results::{Factor, Results, Sample};
pub use setting::Setting;
pub use table::{STYLE, table};

pub(crate) use stage::{SERVICE, SETTINGS, WORKERS};

use results::Round;
use stage::Stage;

/// What is being done, for somebody who waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How many steps are behind.
    pub done: usize,
    /// How many there are.
    pub of: usize,
    /// From 1.
    pub round: usize,
    /// Whose turn it is.
    pub contender: Contender,
    /// Which part of the turn.
    pub part: Part,
}

/// The parts of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Making the network, starting the processes.
    Start,
    /// Holding idle connections.
    Idle,
    /// Short connections.
    Connect,
    /// Round trips on kept connections.
    RoundTrips,
    /// Streams.
    Bulk,
    /// Datagrams, where the contender carries them.
    Datagrams,
}

impl Part {
    const ALL: [Self; 6] = [
        Self::Start,
        Self::Idle,
        Self::Connect,
        Self::RoundTrips,
        Self::Bulk,
        Self::Datagrams,
    ];
}

/// Runs the comparison, and tells `watch` of every step before it is done. Ends early, after the
/// step under way, when `stop` is set.
///
/// Start it on a thread that lives to its end: the processes are killed by the kernel when the thread
/// that started them is gone.
///
/// # Errors
///
/// Where a contender cannot be started, or cannot be measured at all. Operations that failed are in
/// the results.
pub fn run(
    plan: &Plan,
    programs: &Programs,
    stop: &AtomicBool,
    watch: &mut dyn FnMut(Step),
) -> Result<Results> {
    let started = Instant::now();
    let of = plan.rounds * Contender::ALL.len() * Part::ALL.len();
    let mut done = 0;
    let mut rounds = Vec::new();
    for round in 1..=plan.rounds {
        if started.elapsed() >= plan.no_round_after {
            break;
        }
        let mut samples = Round::new();
        for contender in Contender::ALL {
            let mut next = |part| {
                watch(Step {
                    done,
                    of,
                    round,
                    contender,
                    part,
                });
                done += 1;
                match stop.load(Ordering::Relaxed) {
                    true => Err(Error::Interrupted),
                    false => Ok(()),
                }
            };
            samples.insert(contender, turn(plan, programs, contender, &mut next)?);
        }
        rounds.push(samples);
    }
    Ok(Results::new(rounds))
}

/// One contender's turn of a round.
fn turn(
    plan: &Plan,
    programs: &Programs,
    contender: Contender,
    next: &mut dyn FnMut(Part) -> Result<()>,
) -> Result<Sample> {
    next(Part::Start)?;
    let mut stage = Stage::set(contender, programs, plan.sockets())?;
    let mut sample = Sample::default();
    // First of all, because a process that has been under load keeps memory for the next one.
    next(Part::Idle)?;
    load::idle(&mut stage, plan, &mut sample)?;
    next(Part::Connect)?;
    load::connect(&mut stage, plan, &mut sample)?;
    next(Part::RoundTrips)?;
    load::round_trips(&mut stage, plan, &mut sample)?;
    next(Part::Bulk)?;
    load::bulk(&mut stage, plan, &mut sample)?;
    next(Part::Datagrams)?;
    if contender.has_datagrams() {
        load::datagrams(&mut stage, plan, &mut sample)?;
    }
    stage.check()?;
    Ok(sample)
}
