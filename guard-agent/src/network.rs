//! Which sockets and addresses a session may connect to: the form in the configuration, and how it becomes entries of the
//! kernel's maps.
//!
//! A rule that denies goes before one that allows; the profile's default speaks last. The collector's address is denied to
//! every session, before all rules. It must not judge a connection itself. Fails: a rule that is not understood refuses
//! the whole configuration; a map that cannot be filled says less than it should, and what it does not speak about is
//! refused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use guard_common::{
    ADDRESS_KEY, ADDRESS_PROFILE_BITS, COLLECTOR_RULE, EVERY_SESSION, PORT_RANGES, PortRule, PortRules, SOCKET_NAME,
    SocketName, verdict,
};
use serde::Deserialize;

use crate::profile::{Profiles, Treat};

/// Most rules of one profile.
const RULES_MAX: usize = 256;
/// Most sockets that one profile names.
const SOCKETS_MAX: usize = 64;
/// Most profiles.
const PROFILES_MAX: usize = 64;

/// An act that never goes on unrecorded.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Strict {
    /// It is refused and recorded.
    #[default]
    Deny,
    /// It goes on and is recorded.
    Record,
}

/// A Unix socket outside that sessions may connect to.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub enum NamedSocket {
    /// By its file. Its listener must have bound it under a name that the profile names.
    File(PathBuf),
    /// By its abstract name.
    Abstract(Vec<u8>),
}

impl TryFrom<String> for NamedSocket {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() >= SOCKET_NAME {
            return Err(format!("`{text}`: names of Unix sockets have less than {SOCKET_NAME} bytes"));
        }
        match text.strip_prefix('@') {
            Some("") => Err("`@`: an abstract name is missing".into()),
            Some(name) => Ok(Self::Abstract(name.into())),
            None if text.starts_with('/') && !text.contains('\0') => Ok(Self::File(text.into())),
            None => Err(format!("`{text}` is neither an absolute path nor an abstract name (@name)")),
        }
    }
}

impl NamedSocket {
    /// What the kernel keeps as the name of a socket that was bound so.
    fn bound_names(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Abstract(name) => vec![[b"\0", name.as_slice()].concat()],
            Self::File(path) => {
                let mut names = vec![path.clone()];
                // Two names of one folder.
                if let Ok(rest) = path.strip_prefix("/var/run") {
                    names.push(PathBuf::from("/run").join(rest));
                } else if let Ok(rest) = path.strip_prefix("/run") {
                    names.push(PathBuf::from("/var/run").join(rest));
                }
                names.iter().map(|n| [n.as_os_str().as_encoded_bytes(), b"\0"].concat()).collect()
            }
        }
    }
}

/// A prefix of addresses, IPv4 as `::ffff:a.b.c.d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: u128,
    bits: u32,
}

impl Prefix {
    const ANY: Self = Self { address: 0, bits: 0 };
    /// `127.0.0.0/8`.
    const LOOPBACK4: Self = Self { address: 0xffff_7f00_0000, bits: 96 + 8 };
    const LOOPBACK6: Self = Self { address: 1, bits: 128 };

    fn one(address: IpAddr) -> Self {
        Self { address: number_of(address), bits: 128 }
    }

    fn contains(self, other: Self) -> bool {
        self.bits <= other.bits && masked(other.address, self.bits) == self.address
    }

    /// Key of the kernel's map, with its length in bits.
    pub fn key(self, profile: u32) -> (u32, [u8; ADDRESS_KEY]) {
        let mut data = [0; ADDRESS_KEY];
        let (head, tail) = data.split_at_mut(4);
        head.copy_from_slice(&profile.to_be_bytes());
        tail.copy_from_slice(&self.address.to_be_bytes());
        (ADDRESS_PROFILE_BITS + self.bits, data)
    }
}

fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(four) => four.to_ipv6_mapped().to_bits(),
        IpAddr::V6(six) => six.to_bits(),
    }
}

fn masked(address: u128, bits: u32) -> u128 {
    address & u128::MAX.checked_shl(128_u32.saturating_sub(bits)).unwrap_or(0)
}

/// Addresses of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// Every address of this host, loopback included.
    Local,
    /// A prefix.
    Prefix(Prefix),
}

/// Addresses and ports that a rule is about.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(try_from = "String")]
pub struct AddressRule {
    target: Target,
    low: u16,
    high: u16,
    text: String,
}

impl TryFrom<String> for AddressRule {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let why = |what: &str| {
            format!(
                "`{text}`: {what}; a rule is ADDRESS[/BITS][:PORT[-PORT]], with IPv6 in brackets, or `local` or `any`"
            )
        };
        let (target, ports) = split_ports(&text).map_err(why)?;
        let target = parse_target(target).map_err(|what| why(&what))?;
        let (low, high) = parse_ports(ports).map_err(why)?;
        Ok(Self { target, low, high, text })
    }
}

fn split_ports(text: &str) -> Result<(&str, Option<&str>), &'static str> {
    if text.starts_with('[') {
        let end = text.find(']').ok_or("a bracket is missing")?;
        let (head, tail) = text.split_at(end);
        // Bits stand behind the bracket: the prefix is put together again by the caller.
        return match tail.split_once(':') {
            Some((before, ports)) => Ok((text.get(..head.len() + before.len()).unwrap_or(text), Some(ports))),
            None => Ok((text, None)),
        };
    }
    if text.matches(':').count() > 1 {
        return Ok((text, None));
    }
    Ok(text.split_once(':').map_or((text, None), |(target, ports)| (target, Some(ports))))
}

fn parse_target(text: &str) -> Result<Target, String> {
    match text {
        "local" => return Ok(Target::Local),
        "any" => return Ok(Target::Prefix(Prefix::ANY)),
        _ => {}
    }
    let plain: String = text.chars().filter(|c| !matches!(c, '[' | ']')).collect();
    let (address, bits) = plain.split_once('/').map_or((plain.as_str(), None), |(a, b)| (a, Some(b)));
    let address: IpAddr = address.parse().map_err(|_| format!("`{address}` is no address"))?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        Some(bits) => bits.parse::<u32>().ok().filter(|b| *b <= whole).ok_or("wrong number of bits")?,
        None => whole,
    };
    let prefix = Prefix { address: number_of(address), bits: bits + 128 - whole };
    if masked(prefix.address, prefix.bits) != prefix.address {
        return Err(format!("the address has bits beyond its first {bits}"));
    }
    Ok(Target::Prefix(prefix))
}

fn parse_ports(text: Option<&str>) -> Result<(u16, u16), &'static str> {
    let Some(text) = text else { return Ok((0, u16::MAX)) };
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    match (low.parse(), high.parse()) {
        (Ok(low), Ok(high)) if low <= high => Ok((low, high)),
        _ => Err("wrong ports"),
    }
}

/// Internet addresses of a profile.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    /// What happens to addresses that no rule names.
    pub default: Treat,
    /// These go on and are recorded.
    pub allow: Vec<AddressRule>,
    /// These are refused, whatever `allow` says.
    pub deny: Vec<AddressRule>,
    /// Sockets of other families than Unix, internet and netlink to the kernel; raw sockets; other protocols than TCP and UDP.
    pub other_sockets: Strict,
}

impl Default for Network {
    fn default() -> Self {
        let local = |low, high| AddressRule {
            target: Target::Local,
            low,
            high,
            text: if low == high { format!("local:{low}") } else { format!("local:{low}-{high}") },
        };
        Self {
            default: Treat::Record,
            allow: Vec::new(),
            deny: vec![local(22, 22), local(2375, 2376)],
            other_sockets: Strict::Deny,
        }
    }
}

/// Sockets that every system offers to look names up and to log.
pub fn default_sockets() -> Vec<NamedSocket> {
    [
        "/dev/log",
        "/run/systemd/journal/dev-log",
        "/run/nscd/socket",
        "/var/lib/sss/pipes/nss",
        "/run/systemd/resolve/io.systemd.Resolve",
    ]
    .iter()
    .map(|path| NamedSocket::File((*path).into()))
    .collect()
}

/// A profile's number in the kernel's maps: the same for a name as long as the kernel's maps live, whatever else is configured.
pub fn profile_number(name: &str) -> u32 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    if hash == EVERY_SESSION { 1 } else { hash }
}

/// Says what is wrong with the profiles' sockets and addresses.
pub fn check(profiles: &Profiles, control_socket: &std::path::Path) -> Result<(), String> {
    let all = profiles.by_name();
    if all.len() > PROFILES_MAX {
        return Err(format!("{} profiles; at most {PROFILES_MAX}", all.len()));
    }
    let numbers: BTreeSet<u32> = all.keys().map(|name| profile_number(name)).collect();
    if numbers.len() != all.len() {
        return Err("two profiles' names have the same number; rename one".into());
    }
    for (name, profile) in &all {
        let wrong = |what: String| Err(format!("profile `{name}`: {what}"));
        if profile.unix_sockets.len() > SOCKETS_MAX {
            return wrong(format!("{} entries in unix_sockets; at most {SOCKETS_MAX}", profile.unix_sockets.len()));
        }
        if profile.unix_sockets.contains(&NamedSocket::File(control_socket.into())) {
            return wrong("unix_sockets names control.socket, which no session may reach".into());
        }
        let rules = profile.network.allow.len() + profile.network.deny.len();
        if rules > RULES_MAX {
            return wrong(format!("{rules} rules in network; at most {RULES_MAX}"));
        }
        let numbered = Numbered { deny: 1, allow: 1 };
        if let Some(prefix) = compile(&profile.network, numbered, &[]).iter().find(|(_, ports)| ports.is_none()) {
            let at = Ipv6Addr::from_bits(prefix.0.address);
            return wrong(format!("network: more than {PORT_RANGES} ranges of ports differ for {at}"));
        }
    }
    Ok(())
}

/// Numbers of a profile's first rules.
#[derive(Clone, Copy)]
struct Numbered {
    deny: u16,
    allow: u16,
}

/// The rules of all profiles by number, for records.
#[derive(Debug)]
pub struct Rules {
    texts: Vec<String>,
    first: BTreeMap<String, (u16, u16)>,
}

impl Rules {
    /// Numbers every rule.
    pub fn of(profiles: &Profiles) -> Self {
        let mut this = Self { texts: Vec::new(), first: BTreeMap::new() };
        for (name, profile) in profiles.by_name() {
            let deny = this.add(&name, "deny", &profile.network.deny);
            let allow = this.add(&name, "allow", &profile.network.allow);
            this.first.insert(name, (deny, allow));
        }
        this
    }

    fn add(&mut self, profile: &str, list: &str, rules: &[AddressRule]) -> u16 {
        let first = u16::try_from(self.texts.len() + 1).unwrap_or(0);
        self.texts.extend(rules.iter().map(|rule| format!("profile.{profile}.network.{list} {}", rule.text)));
        first
    }

    /// What a record says of a rule; nothing for none.
    pub fn text(&self, number: u16) -> String {
        match number {
            0 => String::new(),
            COLLECTOR_RULE => "collector.address".into(),
            number => self.texts.get(usize::from(number) - 1).cloned().unwrap_or_default(),
        }
    }

    /// Entries for the addresses of every profile.
    pub fn addresses(&self, profiles: &Profiles, local: &[IpAddr]) -> Addresses {
        let mut entries = Addresses::new();
        for (name, profile) in profiles.by_name() {
            let (deny, allow) = self.first.get(&name).copied().unwrap_or((0, 0));
            for (prefix, ports) in compile(&profile.network, Numbered { deny, allow }, local) {
                let ports = ports.unwrap_or_else(|| {
                    tracing::error!(profile = name, ?prefix, "too many ranges of ports for an address: it is denied");
                    everything(verdict::DENY, 0)
                });
                entries.insert(prefix.key(profile_number(&name)), ports);
            }
        }
        entries
    }
}

/// Entries of the kernel's map: key with its length in bits.
pub type Addresses = BTreeMap<(u32, [u8; ADDRESS_KEY]), PortRules>;

fn everything(verdict: u16, rule: u16) -> PortRules {
    ranges(&[PortRule { low: 0, high: u16::MAX, verdict, rule }]).unwrap_or_default()
}

fn ranges(list: &[PortRule]) -> Option<PortRules> {
    let mut rules = PortRules { count: u32::try_from(list.len()).ok()?, ..PortRules::default() };
    rules.ranges.get_mut(..list.len())?.copy_from_slice(list);
    Some(rules)
}

/// What holds for each prefix that some rule names: the longest match in the kernel then needs no other. Nothing for one
/// with too many different ranges.
fn compile(network: &Network, numbers: Numbered, local: &[IpAddr]) -> BTreeMap<Prefix, Option<PortRules>> {
    let local: Vec<Prefix> = local_prefixes(local);
    let mut rules = Vec::new();
    for (list, first, verdict) in
        [(&network.deny, numbers.deny, verdict::DENY), (&network.allow, numbers.allow, verdict::RECORD)]
    {
        for (index, rule) in list.iter().enumerate() {
            let number = first.saturating_add(u16::try_from(index).unwrap_or(u16::MAX));
            let range = PortRule { low: rule.low, high: rule.high, verdict, rule: number };
            match rule.target {
                Target::Prefix(prefix) => rules.push((prefix, range)),
                Target::Local => rules.extend(local.iter().map(|prefix| (*prefix, range))),
            }
        }
    }
    let default = match network.default {
        Treat::Allow => verdict::ALLOW,
        Treat::Record => verdict::RECORD,
        Treat::Deny => verdict::DENY,
    };
    let prefixes: BTreeSet<Prefix> = rules.iter().map(|(prefix, _)| *prefix).chain([Prefix::ANY]).collect();
    prefixes
        .into_iter()
        .map(|prefix| {
            let spoken: Vec<PortRule> =
                rules.iter().filter(|(rule, _)| rule.contains(prefix)).map(|(_, range)| *range).collect();
            (prefix, ranges(&flatten(&spoken, default)))
        })
        .collect()
}

/// One verdict for each port: of the first rule that speaks, else the default.
fn flatten(rules: &[PortRule], default: u16) -> Vec<PortRule> {
    let mut starts: BTreeSet<u16> = BTreeSet::from([0]);
    for rule in rules {
        starts.insert(rule.low);
        starts.extend(rule.high.checked_add(1));
    }
    let mut flat: Vec<PortRule> = Vec::new();
    for start in starts {
        let (verdict, rule) =
            rules.iter().find(|r| (r.low..=r.high).contains(&start)).map_or((default, 0), |r| (r.verdict, r.rule));
        if let Some(last) = flat.last_mut() {
            if (last.verdict, last.rule) == (verdict, rule) {
                continue;
            }
            last.high = start.saturating_sub(1);
        }
        flat.push(PortRule { low: start, high: u16::MAX, verdict, rule });
    }
    flat
}

fn local_prefixes(local: &[IpAddr]) -> Vec<Prefix> {
    let mut all = vec![Prefix::LOOPBACK4, Prefix::LOOPBACK6];
    all.extend(local.iter().map(|a| Prefix::one(*a)).filter(|p| !Prefix::LOOPBACK4.contains(*p)));
    all.sort_unstable();
    all.dedup();
    all
}

/// The collector as sessions may not reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collector {
    /// Its port.
    pub port: u16,
    /// Every address that its name has had; none as long as it is not known.
    pub addresses: BTreeSet<IpAddr>,
}

/// More addresses than this are not told apart.
const COLLECTOR_ADDRESSES_MAX: usize = 64;

impl Collector {
    /// Entries that deny it. As long as its addresses are not known, or when they are too many, its port is denied
    /// everywhere; where it is on this host, on every address of the host.
    pub fn entries(&self, local: &[IpAddr]) -> Addresses {
        let known = (1..=COLLECTOR_ADDRESSES_MAX).contains(&self.addresses.len());
        let mut prefixes: Vec<Prefix> = self.addresses.iter().map(|a| Prefix::one(*a)).collect();
        let here = |a: &IpAddr| a.is_loopback() || a.is_unspecified() || local.contains(a) || mapped_loopback(a);
        if self.addresses.iter().any(here) {
            prefixes.extend(local_prefixes(local));
        }
        if !known {
            prefixes = vec![Prefix::ANY];
        }
        let port = PortRule { low: self.port, high: self.port, verdict: verdict::DENY, rule: COLLECTOR_RULE };
        let ports = ranges(&[port]).unwrap_or_default();
        prefixes.into_iter().map(|prefix| (prefix.key(EVERY_SESSION), ports)).collect()
    }
}

fn mapped_loopback(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(six) if six.to_ipv4_mapped().is_some_and(|four: Ipv4Addr| four.is_loopback()))
}

/// Names under which the profiles' sockets may be bound.
pub fn socket_names(profiles: &Profiles) -> BTreeSet<SocketName> {
    let mut names = BTreeSet::new();
    for (profile, content) in profiles.by_name() {
        for bytes in content.unix_sockets.iter().flat_map(NamedSocket::bound_names) {
            let mut name = [0; SOCKET_NAME];
            // One that is longer cannot be bound.
            let Some(place) = name.get_mut(..bytes.len()) else { continue };
            place.copy_from_slice(&bytes);
            let length = u32::try_from(bytes.len()).unwrap_or(0);
            names.insert(SocketName { profile: profile_number(&profile), length, name });
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Profile;

    fn rule(text: &str) -> Result<AddressRule, String> {
        text.to_owned().try_into()
    }

    fn network(default: Treat, allow: &[&str], deny: &[&str]) -> Network {
        let rules = |list: &[&str]| list.iter().map(|t| rule(t).unwrap()).collect();
        Network { default, allow: rules(allow), deny: rules(deny), other_sockets: Strict::Deny }
    }

    /// As the kernel does it: the longest prefix that matches, then the range.
    fn decide(network: &Network, local: &[IpAddr], address: &str, port: u16) -> (u16, u16) {
        let one = Prefix::one(address.parse().unwrap());
        let all = compile(network, Numbered { deny: 1, allow: 100 }, local);
        let (_, ports) = all.iter().filter(|(p, _)| p.contains(one)).max_by_key(|(p, _)| p.bits).unwrap();
        let ports = ports.unwrap();
        let range = ports.ranges[..ports.count as usize].iter().find(|r| (r.low..=r.high).contains(&port)).unwrap();
        (range.verdict, range.rule)
    }

    #[test]
    fn rules_are_read_in_every_form() {
        for text in [
            "10.0.0.0/8",
            "10.1.2.3",
            "10.1.2.3:443",
            "10.0.0.0/8:1-1023",
            "fd00::/8",
            "[fd00::]/8:22",
            "[::1]:22",
            "any:25",
            "local",
            "local:22",
        ] {
            assert_eq!(rule(text).unwrap().text, text);
        }
        assert_eq!(rule("[fd00::]/8:22").unwrap().target, rule("fd00::/8").unwrap().target);
        for text in [
            "",
            "10.1.2.3/8",
            "10.0.0.0/33",
            "10.0.0.0:70000",
            "10.0.0.0:9-8",
            "host.example:22",
            "[::1",
            "local:x",
            "fd00::/129",
        ] {
            assert!(rule(text).is_err(), "{text}");
        }
        assert!(rule("10.1.2.3/8").unwrap_err().contains("bits beyond its first 8"));
    }

    #[test]
    fn deny_goes_before_allow_and_the_default_speaks_last() {
        let net = network(Treat::Deny, &["10.0.0.0/8:443"], &["10.9.0.0/16"]);
        assert_eq!(decide(&net, &[], "10.1.1.1", 443), (verdict::RECORD, 100));
        assert_eq!(decide(&net, &[], "10.1.1.1", 80), (verdict::DENY, 0));
        assert_eq!(decide(&net, &[], "10.9.1.1", 443), (verdict::DENY, 1));
        assert_eq!(decide(&net, &[], "192.0.2.1", 443), (verdict::DENY, 0));
        // A wide prohibition is not undone by a narrow permission.
        let net = network(Treat::Record, &["10.1.1.1"], &["any:25"]);
        assert_eq!(decide(&net, &[], "10.1.1.1", 25), (verdict::DENY, 1));
        assert_eq!(decide(&net, &[], "2001:db8::1", 25), (verdict::DENY, 1));
        assert_eq!(decide(&net, &[], "10.1.1.1", 26), (verdict::RECORD, 100));
    }

    #[test]
    fn local_is_every_address_of_the_host() {
        let here = ["192.0.2.7".parse().unwrap(), "fe80::7".parse().unwrap()];
        let net = Network::default();
        for address in ["127.0.0.1", "127.9.9.9", "::1", "192.0.2.7", "fe80::7"] {
            assert_eq!(decide(&net, &here, address, 22), (verdict::DENY, 1), "{address}");
            assert_eq!(decide(&net, &here, address, 23), (verdict::RECORD, 0), "{address}");
        }
        assert_eq!(decide(&net, &here, "192.0.2.8", 22), (verdict::RECORD, 0));
    }

    #[test]
    fn a_collector_on_this_host_is_denied_on_each_of_its_addresses() {
        let there: IpAddr = "192.0.2.7".parse().unwrap();
        let mut collector = Collector { port: 7443, addresses: BTreeSet::new() };
        assert!(
            collector.entries(&[there]).contains_key(&Prefix::ANY.key(EVERY_SESSION)),
            "unknown: denied everywhere"
        );
        collector.addresses.insert("198.51.100.1".parse().unwrap());
        assert_eq!(collector.entries(&[there]).len(), 1);
        collector.addresses.insert(there);
        let entries = collector.entries(&[there]);
        assert!(entries.contains_key(&Prefix::LOOPBACK4.key(EVERY_SESSION)) && entries.len() == 4, "{entries:?}");
    }

    #[test]
    fn too_many_ranges_are_refused() {
        let deny: Vec<String> = (0..9).map(|n| format!("any:{}", n * 2 + 1)).collect();
        let deny: Vec<&str> = deny.iter().map(String::as_str).collect();
        let profile = Profile { network: network(Treat::Record, &[], &deny), ..Profile::default() };
        let profiles = Profiles::one("x", profile);
        let why = check(&profiles, std::path::Path::new("/run/c")).unwrap_err();
        assert!(why.contains("profile `x`") && why.contains("more than 16 ranges"), "{why}");
    }

    #[test]
    fn sockets_are_named_as_they_are_bound() {
        let names = NamedSocket::try_from("/run/nscd/socket".to_owned()).unwrap().bound_names();
        assert_eq!(names, [b"/run/nscd/socket\0".to_vec(), b"/var/run/nscd/socket\0".to_vec()]);
        assert_eq!(NamedSocket::try_from("@x".to_owned()).unwrap().bound_names(), [b"\0x".to_vec()]);
        assert!(NamedSocket::try_from("relative".to_owned()).is_err());
        let profile = Profile { unix_sockets: vec![NamedSocket::File("/run/c".into())], ..Profile::default() };
        let profiles = Profiles::one("x", profile);
        assert!(check(&profiles, std::path::Path::new("/run/c")).unwrap_err().contains("control.socket"));
    }

    #[test]
    fn rules_have_their_text_in_records() {
        let profiles = Profiles::default();
        let rules = Rules::of(&profiles);
        assert_eq!(rules.text(1), "profile.default.network.deny local:22");
        assert_eq!((rules.text(0), rules.text(COLLECTOR_RULE)), (String::new(), "collector.address".into()));
    }
}
