//! Virtual machines: a guest with its own kernel in which Guard really enforces.
//!
//! One boot runs one command and powers off. The command's output, errors and exit code come through virtio-serial
//! ports, apart from the console, which is kept in a file. No network but the guest's loopback.
//! Fails: a guest that passes its deadline is killed, and the error shows the end of the console.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{apt, build, bypass, guest, host, kernels};

/// `cargo xtask vm`.
#[derive(Args)]
pub struct VmArgs {
    /// Kernel series: 6.1, 6.12 or 7.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Policy file instead of the shipped default.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// Value of the `lsm=` boot parameter, to try a kernel without `bpf` in it.
    #[arg(long)]
    lsm: Option<String>,
    /// Makes the root an overlay, as containers have.
    #[arg(long)]
    overlay: bool,
    /// Starts neither collector nor daemon.
    #[arg(long)]
    no_guard: bool,
    /// Runs systemd as the first process.
    #[arg(long)]
    systemd: bool,
    /// Takes the release builds.
    #[arg(long)]
    release: bool,
    /// Files or folders to be found under /mnt/copy in the guest.
    #[arg(long)]
    copy: Vec<PathBuf>,
    /// Seconds after which the guest is killed.
    #[arg(long, default_value_t = 1800)]
    deadline: u64,
    /// Command, run as root in the guest.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Everything that one boot needs.
pub struct Spec<'a> {
    /// Names the folder under `target/vm/` with the console and disks.
    pub name: &'a str,
    /// Kernel series.
    pub series: kernels::Series,
    /// `lsm=` boot parameter.
    pub lsm: Option<&'a str>,
    /// Whether collector and daemon are started before the command.
    pub guard: bool,
    /// Policy file for the daemon; the shipped default if none.
    pub policy: Option<&'a Path>,
    /// Shell text, run as root.
    pub command: &'a str,
    /// Copied under /mnt/copy.
    pub copy: &'a [PathBuf],
    /// Keep the data disk of the boot before (same name) instead of a fresh one.
    pub keep_data: bool,
    /// Keep the payload of the boot before (same name): same binaries, same command.
    pub keep_payload: bool,
    /// When the guest is killed.
    pub deadline: Duration,
    /// Whether the root is an overlay: the image below, memory above.
    pub overlay: bool,
    /// Whether systemd is the first process.
    pub systemd: bool,
    /// Take the release builds.
    pub release: bool,
    /// Packages beyond those of every guest; the image is one of its own.
    pub packages: &'a [&'a str],
    /// Connects the console to this terminal and gives a shell there after the command.
    pub shell: bool,
}

impl<'a> Spec<'a> {
    /// A boot with Guard enforcing, default policy, fresh disk, ten minutes.
    pub fn new(name: &'a str, series: kernels::Series, command: &'a str) -> Self {
        Self {
            name,
            series,
            lsm: None,
            guard: true,
            policy: None,
            command,
            copy: &[],
            keep_data: false,
            keep_payload: false,
            deadline: Duration::from_secs(600),
            overlay: false,
            systemd: false,
            release: false,
            packages: &[],
            shell: false,
        }
    }
}

/// A running guest.
pub struct Vm {
    child: Child,
    errors: Option<JoinHandle<()>>,
    dir: PathBuf,
    started: Instant,
    deadline: Duration,
}

/// How a guest ended.
pub struct Ended {
    /// Exit code of the command.
    pub code: u8,
    /// Everything the command wrote to standard output, when it was captured.
    pub stdout: String,
}

/// Runs `cargo xtask vm`.
pub fn command(args: &VmArgs) -> Result<u8> {
    let series = kernels::series(&args.kernel)?;
    match (args.no_guard, args.release) {
        (true, _) => {}
        (false, true) => build::release()?,
        (false, false) => build::all()?,
    }
    let mut text = String::new();
    for word in &args.command {
        let _ = write!(text, "'{}' ", word.replace('\'', r"'\''"));
    }
    let name = format!("vm-{}", std::process::id());
    let spec = Spec {
        lsm: args.lsm.as_deref(),
        guard: !args.no_guard,
        overlay: args.overlay,
        systemd: args.systemd,
        release: args.release,
        policy: args.policy.as_deref(),
        copy: &args.copy,
        deadline: Duration::from_secs(args.deadline),
        ..Spec::new(&name, series, &text)
    };
    let ended = shown(&spec);
    let _ = std::fs::remove_dir_all(dir_of(&name));
    Ok(ended?.code)
}

/// Runs a guest whose output goes to this program's as it comes. Through a pipe: QEMU would open a file anew and write over
/// what others wrote to it.
pub fn shown(spec: &Spec<'_>) -> Result<Ended> {
    let mut vm = Vm::boot(spec, Stdio::piped())?;
    let mut stdout = vm.take_stdout().context("no output")?;
    let copying = std::thread::spawn(move || copy(&mut stdout, &mut std::io::stdout()));
    let ended = vm.wait();
    let _ = copying.join();
    ended
}

/// As `std::io::copy`, but with plain writes: its shortcut between descriptors loses bytes when two streams go to one file.
fn copy(from: &mut impl Read, into: &mut impl Write) {
    let mut buffer = [0_u8; 8192];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let _ = into.write_all(buffer.get(..count).unwrap_or_default());
        let _ = into.flush();
    }
}

fn dir_of(name: &str) -> PathBuf {
    host::target().join("vm").join(name)
}

impl Vm {
    /// Starts a guest. `stdout` is where the command's standard output goes.
    pub fn boot(spec: &Spec<'_>, stdout: Stdio) -> Result<Self> {
        qemu()?;
        let kernel = kernels::get(spec.series)?;
        let root = guest::root_image(spec.packages)?;
        let dir = dir_of(spec.name);
        std::fs::create_dir_all(&dir)?;
        let initramfs = dir.join("initramfs");
        guest::initramfs(&kernel, &initramfs)?;
        if !(spec.keep_payload && dir.join("payload.ext4").exists()) {
            payload(spec, &dir)?;
        }
        let data = dir.join("data.ext4");
        if !(spec.keep_data && data.exists()) {
            guest::empty_image(&data, 768)?;
        }
        for old in ["exit", "marker"] {
            let _ = std::fs::remove_file(dir.join(old));
        }
        let mut child = qemu_command(spec, &kernel, &root, &dir, stdout)
            .stderr(Stdio::piped())
            .spawn()
            .context("starting qemu-system-x86_64")?;
        let errors =
            child.stderr.take().map(|mut errors| std::thread::spawn(move || copy(&mut errors, &mut std::io::stderr())));
        Ok(Self { child, errors, dir, started: Instant::now(), deadline: spec.deadline })
    }

    /// Waits for the power-off; reads captured output on the way.
    pub fn wait(mut self) -> Result<Ended> {
        let reader = self.child.stdout.take().map(|mut out| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = std::io::Read::read_to_end(&mut out, &mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        });
        while self.child.try_wait()?.is_none() {
            if self.started.elapsed() > self.deadline {
                self.kill()?;
                bail!("the guest passed its deadline of {} s\n{}", self.deadline.as_secs(), self.console_tail());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let stdout = reader.and_then(|r| r.join().ok()).unwrap_or_default();
        let _ = self.errors.take().map(JoinHandle::join);
        let exit = std::fs::read_to_string(self.dir.join("exit")).unwrap_or_default();
        let Ok(code) = exit.trim().parse() else {
            bail!("the guest ended without an exit code\n{stdout}\n{}", self.console_tail());
        };
        Ok(Ended { code, stdout })
    }

    /// Takes the stream of the command's output, if it was piped.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// The power cut.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Bytes that guest programs wrote to the marker port.
    pub fn markers(&self) -> Result<Vec<u8>> {
        Ok(std::fs::read(self.dir.join("marker"))?)
    }

    /// The last lines of the console.
    pub fn console_tail(&self) -> String {
        let bytes = std::fs::read(self.dir.join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(40)..).unwrap_or_default();
        format!("console ({}):\n{}", self.dir.join("console.log").display(), tail.join("\n"))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// Gets what guests of these series need, so that several can be booted at once afterwards.
pub fn prepare(series: &[kernels::Series]) -> Result<()> {
    qemu()?;
    guest::root_image(&[])?;
    series.iter().try_for_each(|one| kernels::get(*one).map(|_| ()))
}

/// QEMU 8 or newer: older ones crash newer guests with two processors under emulation.
fn qemu() -> Result<()> {
    let version = || -> Option<u32> {
        let text = host::output(&mut host::cmd("qemu-system-x86_64", ["--version"])).ok()?;
        text.split("version ").nth(1)?.split('.').next()?.parse().ok()
    };
    if version().is_some_and(|v| v >= 8) {
        return Ok(());
    }
    let suite = apt::host_suite()?;
    let backports = format!("{suite}-backports");
    apt::Suites::open(&[&suite, &backports])?.install(&backports, &["qemu-system-x86"])?;
    match version() {
        Some(v) if v >= 8 => Ok(()),
        other => bail!("qemu-system-x86_64 8 or newer is needed, found {other:?}"),
    }
}

fn qemu_command(spec: &Spec<'_>, kernel: &kernels::Kernel, root: &Path, dir: &Path, stdout: Stdio) -> Command {
    let mut append =
        String::from("console=ttyS0 panic=-1 quiet loglevel=4 random.trust_cpu=on mitigations=off init_on_alloc=0");
    if let Some(lsm) = spec.lsm {
        let _ = write!(append, " lsm={lsm}");
    }
    if spec.overlay {
        append.push_str(" guard.overlay");
    }
    let file = |name: &str| dir.join(name).display().to_string();
    let mut command = host::cmd(
        "qemu-system-x86_64",
        ["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2G", "-display", "none", "-no-reboot"],
    );
    command.args(["-nodefaults", "-monitor", "none", "-append", &append]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(dir.join("initramfs"));
    for (image, options) in [
        (root.display().to_string(), "snapshot=on"),
        (file("payload.ext4"), "readonly=on"),
        // A disk whose cache outlives a power cut, as those of servers: what is written is durable, without a flush of its own.
        (file("data.ext4"), "cache=writethrough"),
    ] {
        command.arg("-drive").arg(format!("if=virtio,format=raw,file={image},{options}"));
    }
    command.args(["-device", "virtio-serial", "-device", "virtio-rng-pci"]);
    let out = if spec.shell {
        format!("file,id=out,path={}", file("out"))
    } else {
        "file,id=out,path=/dev/stdout,append=on".into()
    };
    for (name, chardev) in [
        ("out", out),
        ("err", "file,id=err,path=/dev/stderr,append=on".into()),
        ("exit", format!("file,id=exit,path={}", file("exit"))),
        ("marker", format!("file,id=marker,path={}", file("marker"))),
    ] {
        command.args(["-chardev", &chardev, "-device", &format!("virtserialport,chardev={name},name=guard.{name}")]);
    }
    if spec.shell {
        command.args(["-serial", "stdio"]).stdin(Stdio::inherit());
    } else {
        command.arg("-serial").arg(format!("file:{}", file("console.log"))).stdin(Stdio::null());
    }
    command.stdout(stdout);
    command
}

/// Makes the disk that carries Guard's binaries, configuration and the command of this boot.
fn payload(spec: &Spec<'_>, dir: &Path) -> Result<()> {
    let tree = dir.join("payload");
    let _ = std::fs::remove_dir_all(&tree);
    for sub in ["bin", "etc", "copy"] {
        std::fs::create_dir_all(tree.join(sub))?;
    }
    let deploy = host::root().join("deploy/vm");
    for name in ["init.sh", "guard-up.sh", "guard-down.sh"] {
        std::fs::copy(deploy.join(name), tree.join(name)).with_context(|| format!("deploy/vm/{name}"))?;
    }
    for name in ["agent.toml", "guardctl.toml"] {
        std::fs::copy(deploy.join(name), tree.join("etc").join(name)).with_context(|| format!("deploy/vm/{name}"))?;
    }
    if let Some(policy) = spec.policy {
        std::fs::copy(policy, tree.join("etc/policy.yaml")).with_context(|| policy.display().to_string())?;
    }
    for name in build::BINARIES.into_iter().chain(["guard-guest-tests"]) {
        let built = host::target().join(if spec.release { "release" } else { "debug" }).join(name);
        if built.exists() {
            host::run_quiet(host::cmd("strip", ["-g", "-o"]).arg(tree.join("bin").join(name)).arg(&built))?;
        } else if spec.guard {
            bail!("{} is missing: cargo xtask build", built.display());
        }
    }
    if bypass::dir().exists() {
        host::run_quiet(host::cmd("cp", ["-a"]).arg(bypass::dir()).arg(tree.join("bypass")))?;
    }
    for path in spec.copy {
        host::run_quiet(host::cmd("cp", ["-a"]).arg(path).arg(tree.join("copy")))?;
    }
    let mut command = String::from("#!/bin/bash\n");
    command += spec.command;
    command.push('\n');
    std::fs::write(tree.join("command.sh"), command)?;
    std::fs::set_permissions(tree.join("command.sh"), PermissionsExt::from_mode(0o755))?;
    let flags = format!(
        "GUARD={}\nSHELL_AFTER={}\nSYSTEMD={}\n",
        u8::from(spec.guard),
        u8::from(spec.shell),
        u8::from(spec.systemd)
    );
    std::fs::write(tree.join("flags"), flags)?;
    guest::make_image(&tree, &dir.join("payload.ext4"))?;
    let _ = std::fs::remove_dir_all(&tree);
    Ok(())
}
