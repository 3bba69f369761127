//! The addresses of this host's interfaces.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// More addresses than this are not looked at.
const ADDRESSES_MAX: usize = 4096;

/// Addresses of all interfaces, at most 4096.
pub fn local() -> io::Result<Vec<IpAddr>> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the call fills the pointer or fails.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = first;
    while !next.is_null() && found.len() < ADDRESSES_MAX {
        // SAFETY: `next` is an entry of the list that getifaddrs made and that is not freed yet.
        let entry = unsafe { &*next };
        // SAFETY: the address of such an entry is null or as long as its family says.
        found.extend(unsafe { address(entry.ifa_addr) });
        next = entry.ifa_next;
    }
    // SAFETY: `first` comes from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

/// # Safety
/// `place` must be null or point to a socket address as long as its family says.
unsafe fn address(place: *const libc::sockaddr) -> Option<IpAddr> {
    if place.is_null() {
        return None;
    }
    // SAFETY: by contract, every family starts so.
    match i32::from(unsafe { (*place).sa_family }) {
        libc::AF_INET => {
            // SAFETY: by contract; read without regard to alignment.
            let name = unsafe { place.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes()).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let name = unsafe { place.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(name.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_loopback() {
        assert!(local().unwrap().iter().any(IpAddr::is_loopback));
    }
}
