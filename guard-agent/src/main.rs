//! dev
#![allow(dead_code)]
mod frame;
mod kernel;
mod launcher;
mod script;
fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|a| a == "canary-child") { std::process::exit(42); }
    let forked = launcher::Forked::fork().unwrap();
    let l = forked.connect().unwrap(); eprintln!("launcher");
    let _ = std::fs::create_dir(std::env::var("CG").unwrap_or("/sys/fs/cgroup/guard".into()));
    let k = kernel::load::Kernel::load(&kernel::load::LoadOptions{pin_dir:"/sys/fs/bpf/guard".into(), cgroup:std::env::var("CG").unwrap_or("/sys/fs/cgroup/guard".into()).into()});
    eprintln!("loaded"); match k { Ok(k) => { println!("{:?}", k.instructions()); println!("{:?}", kernel::canary::measure(&k, &l, std::path::Path::new("/sys/fs/cgroup/guard")));
      let mut e = k.take_events().unwrap(); while let Some(e) = e.next_event() { println!("{e:?}"); } }
      Err(e) => println!("{e} {e:?}") }
}
