//! `guardctl review` on a terminal: what waits, one request whole, and the person's answer, full screen.
//!
//! It must not send a decision for anything but the request on the screen ([`state`] builds it from that copy, with its digest), must
//! not write a character of others unescaped (everything comes through `show`), and must leave the terminal as it was on every way
//! out: end, panic, signal, lost connection. Fails: where there is no terminal for it, the caller falls back to the plain list.

use std::io;
use std::time::Duration;

use guard_proto::v1::{ListReviewsRequest, Review};
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use rustix::termios::isatty;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::client::{self, Client};
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::{Out, note};
use crate::review::decide;
use crate::time;

mod draw;
mod state;

use state::{Action, News, State};

/// How often what waits is asked for.
const POLL: Duration = Duration::from_secs(1);
/// How often time left is drawn anew.
const TICK: Duration = Duration::from_millis(250);
/// Requests that are listed.
const LIST_MAX: u32 = 500;
/// Keys and news that wait to be taken.
const QUEUE: usize = 64;

/// Whether there is a terminal for it; says so where a person would wonder.
pub fn fits(out: &Out) -> bool {
    if out.is_json() || !isatty(io::stdin()) || !isatty(io::stdout()) {
        return false;
    }
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if dumb {
        note("guardctl: TERM says that this terminal cannot do a full screen; this is the plain list");
    }
    !dumb
}

/// Runs until the person leaves.
pub async fn run(client: Client, config: &Config, out: &Out) -> Result<()> {
    let mut signals = Signals::new().map_err(|e| internal("cannot listen to signals", &e))?;
    let (tell, mut news) = mpsc::channel(QUEUE);
    let (open, opened) = watch::channel(None::<String>);
    let asking = tokio::spawn(ask(client.clone(), opened, tell.clone()));
    let mut state = State::new(out.color());
    // From here on the terminal is this program's; dropping `screen` gives it back.
    let mut screen = Screen::take().map_err(|e| internal("cannot take the terminal", &e))?;
    let mut keys = keys();
    let mut tick = tokio::time::interval(TICK);
    let ended = loop {
        let drawn = screen.0.draw(|frame| draw::draw(frame, &mut state, time::now_ns()));
        if let Err(error) = drawn {
            break Err(CliError::new(Exit::Unavailable, format_args!("the terminal is gone: {error}")));
        }
        tokio::select! {
            key = keys.recv() => {
                let Some(event) = key else {
                    break Err(CliError::new(Exit::Unavailable, "the terminal is gone"));
                };
                match state.event(&event, time::now_ns()) {
                    Action::None => {}
                    Action::Quit => break Ok(()),
                    Action::Open(id) => { open.send_replace(Some(id)); }
                    Action::Close => { open.send_replace(None); }
                    Action::Decide(review, choice) => {
                        let (mut client, config, tell) = (client.clone(), config.clone(), tell.clone());
                        tokio::spawn(async move {
                            let sent = decide::send(&mut client, &config, &review, choice).await.map(|sent| sent.leaf);
                            let id = super::critical::id(&review).to_owned();
                            // Nobody listens any more: the screen was left.
                            let _ = tell.send(News::Decided(id, sent)).await;
                        });
                    }
                }
            }
            Some(news) = news.recv() => state.news(news, time::now_ns()),
            _ = tick.tick() => {}
            name = signals.any() => break Err(CliError::new(Exit::Unavailable, format_args!("ended by {name}"))),
        }
    };
    asking.abort();
    drop(screen);
    ended
}

fn internal(what: &str, error: &io::Error) -> CliError {
    CliError::new(Exit::Internal, format_args!("{what}: {error}"))
}

/// The terminal in raw mode, on its other screen; given back on drop, and by the hook that ratatui sets where a thread panics.
struct Screen(ratatui::DefaultTerminal);

impl Screen {
    fn take() -> io::Result<Screen> {
        ratatui::try_init().map(Screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone has nothing to be restored.
        let _ = ratatui::try_restore();
    }
}

/// Signals that end a program.
struct Signals([(&'static str, Signal); 4]);

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals([
            ("SIGTERM", signal(SignalKind::terminate())?),
            ("SIGHUP", signal(SignalKind::hangup())?),
            ("SIGINT", signal(SignalKind::interrupt())?),
            ("SIGQUIT", signal(SignalKind::quit())?),
        ]))
    }

    async fn any(&mut self) -> &'static str {
        let [term, hup, int, quit] = &mut self.0;
        tokio::select! {
            _ = term.1.recv() => term.0,
            _ = hup.1.recv() => hup.0,
            _ = int.1.recv() => int.0,
            _ = quit.1.recv() => quit.0,
        }
    }
}

/// Keys, from a thread of their own: reading a terminal blocks. It ends with the terminal or the program.
fn keys() -> mpsc::Receiver<Event> {
    let (tell, keys) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            let wanted = match &event {
                Event::Key(key) => key.kind != KeyEventKind::Release,
                Event::Resize(..) => true,
                _ => false,
            };
            if wanted && tell.blocking_send(event).is_err() {
                return;
            }
        }
    });
    keys
}

/// Asks what waits, and for the request that is open, again and again.
async fn ask(mut client: Client, mut opened: watch::Receiver<Option<String>>, tell: mpsc::Sender<News>) {
    let mut every = tokio::time::interval(POLL);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            changed = opened.changed() => if changed.is_err() { return },
        }
        let wanted = opened.borrow_and_update().clone();
        if let Some(id) = wanted {
            let shown = super::get(&mut client, &id).await.map(Box::new);
            if tell.send(News::Shown(id, shown)).await.is_err() {
                return;
            }
        }
        if tell.send(News::List(list(&mut client).await)).await.is_err() {
            return;
        }
    }
}

async fn list(client: &mut Client) -> Result<Vec<Review>> {
    let request = ListReviewsRequest { limit: LIST_MAX, ..ListReviewsRequest::default() };
    Ok(client.list_reviews(request).await.map_err(client::refused)?.into_inner().reviews)
}
