//! An ungoverned process that starts programs all the time and notes the longest it had to wait (promise P6).

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

/// No neighbour waits this long for a no-op, even under emulation with both processors busy. A held one waits for ever.
const LIMIT: Duration = Duration::from_millis(2500);

/// A running neighbour.
pub struct Neighbour {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<(u32, Duration)>>,
}

impl Neighbour {
    /// Starts it.
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut count, mut worst) = (0, Duration::ZERO);
            while !flag.load(Ordering::Relaxed) {
                let start = Instant::now();
                let status = Command::new("/usr/bin/true").stdin(Stdio::null()).status()?;
                if !status.success() {
                    bail!("an ungoverned program failed: {status}");
                }
                worst = worst.max(start.elapsed());
                count += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok((count, worst))
        });
        Self { stop, thread }
    }

    /// Stops it and judges.
    pub fn unharmed(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let (count, worst) = self.thread.join().map_err(|_| anyhow!("the neighbour panicked"))??;
        if count < 10 {
            bail!("the neighbour started only {count} programs");
        }
        if worst > LIMIT {
            bail!("a neighbour waited {} ms for a no-op", worst.as_millis());
        }
        Ok(())
    }
}
