//! Makes an authority, and certificates from it.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyport_model::names::NodeName;
use anyport_node::access::{Certified, Role, Roles};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd, string::Ia5String,
};

use super::files::{Existing, Readers, make_directory, read, write};
use crate::{
    ages::short,
    console::Console,
    failure::{Exit, Failure},
};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Ten years.
const CA_DAYS: u32 = 3_650;
/// A clock that is behind by less finds a new certificate valid all the same.
const SKEW: Duration = Duration::from_secs(3600);
/// The authority's own files are called so.
const CA: &str = "ca";

#[derive(Debug, clap::Args)]
pub(super) struct IssueArgs {
    /// config-service, balancer, edge, operator or viewer; several with + between
    #[arg(value_name = "ROLE[+ROLE…]")]
    roles: Asked,
    /// Of an edge or a balancer its --name; of a person what the history should say
    name: NodeName,
    /// Where the authority is
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// A host name that the process is dialled by, besides NAME; may be given several
    /// times [default, without --ip too: localhost]
    #[arg(long, value_name = "HOST")]
    dns: Vec<String>,
    /// An address that the process is dialled by; may be given several times
    /// [default, without --dns too: 127.0.0.1 and ::1]
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// How long it is valid
    #[arg(
        long,
        value_name = "DAYS",
        default_value = "365",
        value_parser = clap::value_parser!(u32).range(1..=36_500)
    )]
    days: u32,
    /// Replace a certificate of that name; a process takes the new one into use by itself
    #[arg(long)]
    force: bool,
}

/// Roles on the command line.
#[derive(Debug, Clone)]
struct Asked(Vec<Role>);

impl FromStr for Asked {
    type Err = anyport_node::access::RoleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let roles = text.split('+').map(str::parse);
        Ok(Self(roles.collect::<Result<_, _>>()?))
    }
}

struct Paths {
    cert: PathBuf,
    key: PathBuf,
}

impl Paths {
    fn of(directory: &Path, name: &str) -> Self {
        Self {
            cert: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        }
    }

    fn existing(&self) -> Option<&Path> {
        let both = [&self.cert, &self.key];
        both.into_iter()
            .find(|path| path.exists())
            .map(|path| &**path)
    }

    /// The key first: a certificate that is there has a key.
    fn write(&self, cert: &str, key: &KeyPair, existing: Existing) -> Result<(), Failure> {
        write(&self.key, &key.serialize_pem(), Readers::Owner, existing)?;
        write(&self.cert, cert, Readers::Everyone, existing)
    }
}

pub(super) fn init(directory: &Path, console: &mut Console) -> Result<(), Failure> {
    let paths = Paths::of(directory, CA);
    if let Some(path) = paths.existing() {
        return Err(Failure::refused(format_args!(
            "{} is there already, and what it issued would be worth nothing without it",
            path.display()
        ))
        .remedy("give another --dir for another authority"));
    }
    make_directory(directory)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // Two authorities of one name would be taken for each other, until a signature
    // turns out to be wrong.
    let name = format!("anyport authority {:08x}", rand::random::<u32>());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    valid(&mut params, now, now + DAY * CA_DAYS);
    let key = KeyPair::generate().map_err(|error| cannot("make a key", &error))?;
    let certificate = params
        .self_signed(&key)
        .map_err(|error| cannot("make an authority", &error))?;
    paths.write(&certificate.pem(), &key, Existing::Keep)?;
    console.line(format_args!(
        "{}: give it to every process and person as --tls-ca",
        paths.cert.display()
    ))?;
    console.line(format_args!(
        "{}: keep it where certificates are issued, and nowhere else",
        paths.key.display()
    ))?;
    Ok(())
}

pub(super) fn issue(args: IssueArgs, console: &mut Console) -> Result<(), Failure> {
    let name = args.name.as_str();
    if name == CA {
        return Err(Failure::new(
            Exit::Usage,
            "the files of the authority are called `ca`; give another NAME",
        ));
    }
    let paths = Paths::of(&args.dir, name);
    if let Some(path) = paths.existing().filter(|_| !args.force) {
        return Err(
            Failure::refused(format_args!("{} is there already", path.display()))
                .remedy("replace it with --force, or give another NAME"),
        );
    }
    let (issuer, until) = authority(&args.dir)?;
    let now = SystemTime::now();
    let expires = now + DAY * args.days;
    if expires > until {
        let left = until.duration_since(now).unwrap_or_default();
        return Err(Failure::refused(format_args!(
            "--days {}: the authority itself ends in {}",
            args.days,
            short(left)
        ))
        .remedy("give fewer --days, or make a new authority with `anyport certs init`"));
    }
    let mut params = params(&args)?;
    valid(&mut params, now - SKEW, expires);
    let key = KeyPair::generate().map_err(|error| cannot("make a key", &error))?;
    let certificate = params
        .signed_by(&key, &issuer)
        .map_err(|error| cannot("sign the certificate", &error))?;
    let existing = match args.force {
        true => Existing::Replace,
        false => Existing::Keep,
    };
    paths.write(&certificate.pem(), &key, existing)?;
    console.line(format_args!(
        "{} and {}: {} `{name}`, for {} days",
        paths.cert.display(),
        paths.key.display(),
        Roles::from_iter(args.roles.0),
        args.days,
    ))?;
    Ok(())
}

/// The authority in a directory, and when it ends.
fn authority(directory: &Path) -> Result<(Issuer<'static, KeyPair>, SystemTime), Failure> {
    let paths = Paths::of(directory, CA);
    if !paths.cert.exists() && !paths.key.exists() {
        let directory = directory.display();
        return Err(
            Failure::refused(format_args!("--dir {directory}: there is no authority")).remedy(
                format_args!("make one: anyport certs init --dir {directory}"),
            ),
        );
    }
    let (cert, key) = (read(&paths.cert)?, read(&paths.key)?);
    let key = KeyPair::from_pem(&key)
        .map_err(|error| cannot(&format!("use {}", paths.key.display()), &error))?;
    let unusable = || {
        let path = paths.cert.display();
        Failure::refused(format_args!("{path}: is no certificate in PEM"))
    };
    let certified = Certified::from_pem(&cert).ok_or_else(unusable)?;
    let issuer = Issuer::from_ca_cert_pem(&cert, key).map_err(|_| unusable())?;
    Ok((issuer, certified.expires))
}

fn params(args: &IssueArgs) -> Result<CertificateParams, Failure> {
    let roles = &args.roles.0;
    let mut params = CertificateParams::default();
    let subject = &mut params.distinguished_name;
    *subject = DistinguishedName::new();
    subject.push(DnType::CommonName, args.name.as_str());
    let organization = Roles::from_iter(roles.iter().copied()).organization();
    subject.push(DnType::OrganizationName, organization);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let is_dialled = |role: &Role| match role {
        Role::ConfigService | Role::Balancer | Role::Edge => true,
        Role::Operator | Role::Viewer => false,
    };
    if roles.iter().any(is_dialled) {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
        params.subject_alt_names = alternative_names(args)?;
    } else if !(args.dns.is_empty() && args.ip.is_empty()) {
        return Err(Failure::new(
            Exit::Usage,
            "--dns and --ip are for what is dialled: a config service, a balancer or an edge",
        ));
    }
    Ok(params)
}

fn alternative_names(args: &IssueArgs) -> Result<Vec<SanType>, Failure> {
    let local = args.dns.is_empty() && args.ip.is_empty();
    let host_names = [args.name.as_str()]
        .into_iter()
        .chain(args.dns.iter().map(String::as_str))
        .chain(local.then_some("localhost"));
    let mut names = Vec::new();
    for host in host_names {
        let name = Ia5String::try_from(host).map_err(|_| {
            Failure::new(
                Exit::Usage,
                format_args!("--dns {host}: is no host name; right is one such as fra-1.example"),
            )
        })?;
        names.push(SanType::DnsName(name));
    }
    let loopback = [
        IpAddr::from([127, 0, 0, 1]),
        IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
    ];
    let loopback = loopback.into_iter().filter(|_| local);
    let addresses = args.ip.iter().copied().chain(loopback);
    names.extend(addresses.map(SanType::IpAddress));
    Ok(names)
}

fn valid(params: &mut CertificateParams, from: SystemTime, until: SystemTime) {
    let epoch = date_time_ymd(1970, 1, 1);
    let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + since(from);
    params.not_after = epoch + since(until);
}

fn cannot(what: &str, error: &rcgen::Error) -> Failure {
    Failure::refused(format_args!("cannot {what}: {error}"))
}
