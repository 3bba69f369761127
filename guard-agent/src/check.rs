//! `guard-agent check`: says of everything that `run` needs whether it is there. It changes nothing.

use std::fmt::Write;
use std::path::Path;

use crate::config::{Config, Mode};
use crate::exit::{Code, Failure, failed};
use crate::kernel::{btf, cgroup, object, proc};
use crate::{policies, preflight, ship};

/// What was found.
pub struct Report {
    /// One line per thing.
    pub text: String,
    /// `run` could start.
    pub good: bool,
}

impl Report {
    fn add(&mut self, what: &str, found: Result<String, String>) {
        let (mark, text) = match found {
            Ok(text) => ("ok  ", text),
            Err(text) => {
                self.good = false;
                ("FAIL", text)
            }
        };
        let _ = writeln!(self.text, "{mark} {what}: {text}");
    }
}

/// Looks at everything.
pub fn run(path: &Path) -> Result<Report, Failure> {
    let config = Config::read(path).map_err(failed(Code::Config))?;
    let mut report = Report { text: String::new(), good: true };
    report.add("configuration", Ok(path.display().to_string()));
    let loaded = policies::load(&config);
    let roles = loaded.as_ref().map(|p| crate::roles::describe(&config, p.newest().roles.as_ref()));
    let roles = roles.map_err(|_| "not read, see policy".to_owned());
    report.add("policy", loaded.as_ref().map(rules).map_err(Clone::clone));
    report.add("roles", roles);
    if let Ok(Some(sigma)) = loaded.as_ref().map(|p| p.newest().sigma.as_ref()) {
        report.add("sigma", Ok(sigma.describe()));
    }
    report.add("credentials", crate::credentials::describe(&config));
    let collector = ship::endpoint(&config.collector)
        .map(|(_, facts)| format!("{}, this node's ends at {}", config.collector.address, facts.end));
    report.add("collector certificates", collector);
    if let Some(pins) = &config.collector.pins {
        report.add("collector pins", config.collector.pinned().map(|_| pins.display().to_string()));
    }
    report.add(
        "kernel programs",
        match object::bytes().len() {
            0 => Err("not in this binary: build it with `cargo xtask build`".into()),
            bytes => Ok(format!("{bytes} bytes")),
        },
    );
    report.add("kernel types and hooks", hooks());
    for limit in preflight::limits(&config) {
        report.add(limit.name, limit.verdict());
    }
    report.add("BPF LSM", lsm(config.kernel.mode));
    report.add("BPF file system", bpffs(&config.kernel.pin_dir));
    let parent = config.kernel.cgroup.parent().unwrap_or(Path::new("/"));
    let found = cgroup::identity(parent).map(|_| config.kernel.cgroup.display().to_string());
    report.add("cgroup v2", found.map_err(|e| e.to_string()));
    report.add(
        "control group",
        match proc::group_by_name(&config.control.group) {
            Some(id) => Ok(format!("{} is {id}", config.control.group)),
            None => Err(format!("no group `{}`: groupadd --system {}", config.control.group, config.control.group)),
        },
    );
    let text = report.text.trim_end().to_owned();
    Ok(Report { text, ..report })
}

fn rules(loaded: &policies::Policies) -> String {
    let newest = loaded.newest();
    let from = match &newest.bundle {
        Some((manifest, _)) => format!(", bundle {}", manifest.serial()),
        None => String::new(),
    };
    format!("{} rules, digest {}{from}", newest.policy.rule_count(), newest.digest)
}

fn hooks() -> Result<String, String> {
    let types = btf::Btf::of_running_kernel().map_err(|e| e.to_string())?;
    let (needed, optional) = preflight::absent_hooks(&types);
    match (needed.as_slice(), optional.as_slice()) {
        ([], []) => Ok("all are there".into()),
        ([], optional) => Ok(format!("all that are needed; this kernel does without {}", optional.join(", "))),
        (needed, _) => Err(format!("this kernel lacks {}: a newer one is needed", needed.join(", "))),
    }
}

fn lsm(mode: Mode) -> Result<String, String> {
    let active = std::fs::read_to_string("/sys/kernel/security/lsm")
        .map_err(|e| format!("/sys/kernel/security/lsm: {e} (mount -t securityfs securityfs /sys/kernel/security)"))?;
    let active = active.trim();
    if active.split(',').any(|name| name == "bpf") || mode == Mode::Observe {
        return Ok(active.to_owned());
    }
    Err(format!("bpf is not among the active LSMs ({active}): boot with lsm={active},bpf"))
}

fn bpffs(pin_dir: &Path) -> Result<String, String> {
    const MAGIC: i64 = 0xcafe_4a11;
    let mount = pin_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statfs(mount) {
        Ok(stat) if stat.f_type == MAGIC => Ok(mount.display().to_string()),
        _ => Err(format!("{} does not lie on one: mount -t bpf bpf /sys/fs/bpf", pin_dir.display())),
    }
}
