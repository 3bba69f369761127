//! Where a webhook's messages may go: addresses of the configuration, and what their names lead to.
//!
//! It must not let a name of somebody else's choosing turn the collector against this machine or the cloud that it runs in: every
//! address that a name resolves to is looked at just before the connection, and those that are refused are never connected to.
//! Fails closed: a name that leads to nothing else is an error that says so.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Longest address.
const URL_MAX: usize = 2048;
/// Addresses outside the link-local ranges at which clouds hand out credentials or configuration.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// What an address may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The address names this machine, and may lead to nothing else.
    Loopback,
    /// Other machines, and never this one.
    Others,
}

/// Checks an address.
pub fn parse(text: &str) -> Result<(Url, Reach), String> {
    if text.len() > URL_MAX {
        return Err(format!("longer than {URL_MAX} bytes"));
    }
    let url = Url::parse(text).map_err(|e| format!("{e}; accepted is https://HOST[:PORT]/PATH"))?;
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err("a user, a password or a fragment does not belong into it".to_owned());
    }
    let host = url.host_str().ok_or("it names no host")?.trim_matches(['[', ']']);
    let literal: Option<IpAddr> = host.parse().ok();
    let reach = match literal {
        Some(address) if plain(address).is_loopback() => Reach::Loopback,
        None if host == "localhost" => Reach::Loopback,
        _ => Reach::Others,
    };
    match (url.scheme(), reach) {
        ("https", _) | ("http", Reach::Loopback) => {}
        ("http", Reach::Others) => {
            return Err("http is accepted for localhost, 127.0.0.1 and [::1] alone; use https".to_owned());
        }
        _ => return Err("accepted is https://HOST[:PORT]/PATH".to_owned()),
    }
    if let Some(address) = literal {
        refused(address, reach).map_or(Ok(()), Err)?;
    }
    Ok((url, reach))
}

/// Scheme, host and port.
pub fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}", url.scheme(), url.host_str().unwrap_or_default())
}

/// An IPv4 address in whatever form it came.
fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match (v6.to_ipv4_mapped(), v6.segments()) {
            (Some(v4), _) => IpAddr::V4(v4),
            // NAT64 of a network.
            (None, [0x64, 0xff9b, 0, 0, 0, 0, high, low]) => {
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                IpAddr::V4(Ipv4Addr::new(a, b, c, d))
            }
            _ => address,
        },
        IpAddr::V4(_) => address,
    }
}

/// Why nothing is sent to an address, if so.
fn refused(address: IpAddr, reach: Reach) -> Option<String> {
    let plain = plain(address);
    let what = match plain {
        IpAddr::V4(v4) if v4.is_link_local() => "link-local",
        IpAddr::V6(v6) if v6.is_unicast_link_local() => "link-local",
        other if METADATA.contains(&other) => "a metadata service of a cloud",
        other if other.is_unspecified() || other.is_multicast() => "no address of a machine",
        IpAddr::V4(v4) if v4.is_broadcast() || v4.octets().first() == Some(&0) => "no address of a machine",
        other if other.is_loopback() && reach == Reach::Others => "this machine, which the configuration does not name",
        other if !other.is_loopback() && reach == Reach::Loopback => "another machine than this one",
        _ => return None,
    };
    Some(format!("{address} is refused: it is {what}"))
}

/// Resolves names to what may be reached.
#[derive(Clone, Copy, Debug)]
pub struct Checked(pub Reach);

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let good: Vec<SocketAddr> = found.iter().copied().filter(|a| refused(a.ip(), reach).is_none()).collect();
            if good.is_empty() {
                let why = found.iter().find_map(|a| refused(a.ip(), reach));
                return Err(why.unwrap_or_else(|| "the name leads to no address".to_owned()).into());
            }
            Ok(Box::new(good.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_alone() {
        for good in ["http://127.0.0.1:8080/x", "http://localhost/x", "http://[::1]:1/", "https://siem.example/x?k=v"] {
            parse(good).unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        for bad in ["http://10.0.0.1/", "http://siem.example/", "ftp://siem.example/", "https://a:b@siem.example/"] {
            parse(bad).expect_err(bad);
        }
    }

    #[test]
    fn addresses_where_clouds_hand_out_credentials_are_refused_in_every_form() {
        for bad in [
            "https://169.254.169.254/latest/",
            "https://2852039166/",
            "https://0xa9fea9fe/",
            "https://[::ffff:169.254.169.254]/",
            "https://[64:ff9b::a9fe:a9fe]/",
            "https://[fe80::1]/",
            "https://[fd00:ec2::254]/",
            "https://100.100.100.200/",
            "https://0.0.0.0/",
            "https://[::]/",
            "https://224.0.0.1/",
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains("is refused"), "{bad}: {error}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_here_is_refused_unless_the_configuration_says_this_machine() {
        let resolve = |reach| Checked(reach).resolve("localhost".parse().expect("a name"));
        let found = resolve(Reach::Loopback).await.expect("allowed");
        assert!(found.count() > 0);
        let error = resolve(Reach::Others).await.err().expect("refused").to_string();
        assert!(error.contains("this machine"), "{error}");
        assert!(refused(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)), Reach::Loopback).is_some(), "a name in /etc/hosts");
        assert!(refused(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)), Reach::Others).is_none(), "a receiver nearby");
    }
}
