//! What is on the screen, and what a key or news from the collector makes of it. No terminal, no network.
//!
//! A decision is made of the copy of the request that is shown, never of what the list holds by now. It must not take an approval of
//! critical risk before the whole request was on the screen for a while and the person has typed a word that only reading gives.
//! Fails: never; what cannot be done is said in the line below.

use guard_proto::v1::Review;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};

use crate::exit::Result;
use crate::review::KIND_EXECS;
use crate::review::critical::{PAUSE_NS, confirms, id, is_critical, words};
use crate::review::decide::Choice;
use crate::text::{escape_str, is_hidden};

/// Longest reason that can be typed; the collector takes 2,000 bytes.
const REASON_MAX: usize = 400;
/// Execs that an approval with scope root covers.
const ROOT_EXECS: u32 = 20;

/// How far an approval on the screen reaches; Tab goes on to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// This exec.
    Once,
    /// Acts of its kinds for the rest of the session; only where the host offers it.
    Kind,
    /// What it starts too.
    Root,
}

/// What has to be done outside.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Nothing.
    None,
    /// Leave.
    Quit,
    /// Ask for this request, and go on asking.
    Open(String),
    /// Ask for it no more.
    Close,
    /// Send a decision for exactly this.
    Decide(Box<Review>, Choice),
}

/// What came from the collector.
#[derive(Debug)]
pub enum News {
    /// What waits.
    List(Result<Vec<Review>>),
    /// The request that was opened, as it is now.
    Shown(String, Result<Box<Review>>),
    /// What became of a decision: the leaf of its record.
    Decided(String, Result<u64>),
}

/// How a line below is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It went well.
    Good,
    /// Look at it.
    Bad,
}

/// What the person is about to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// Approve, else deny.
    pub approve: bool,
    /// How far the approval reaches.
    pub reach: Reach,
    /// Why.
    pub reason: String,
    /// Of critical risk: the word so far, once the reason is given.
    pub word: Option<String>,
}

/// One request on the screen.
#[derive(Debug)]
pub struct Detail {
    /// As it was fetched first: what is shown and what a decision is about.
    pub review: Review,
    /// Since when it is shown.
    pub since_ns: i64,
    /// First line on the screen.
    pub top: usize,
    /// Lines that fit, lines that there are; the last drawing says.
    pub page: usize,
    /// Lines that there are.
    pub lines: usize,
    /// The end was on the screen.
    pub whole: bool,
    /// What is being answered.
    pub form: Option<Form>,
    /// A decision is on its way.
    pub sending: bool,
    /// Why nothing can be decided any more.
    pub closed: Option<String>,
}

/// Everything on the screen.
#[derive(Debug, Default)]
pub struct State {
    /// Colours may be used.
    pub color: bool,
    /// What waits, oldest first; `None` until the collector has said.
    pub reviews: Option<Vec<Review>>,
    /// Id of the selected one.
    pub selected: String,
    /// The request that is open.
    pub detail: Option<Detail>,
    /// The request that was asked for.
    opening: Option<String>,
    /// The line below.
    pub notice: Option<(Mood, String)>,
    /// The collector does not answer.
    pub lost: Option<String>,
}

// === impl Detail ===

impl Detail {
    fn new(review: Review, now_ns: i64) -> Self {
        let closed = over(&review);
        Self { review, since_ns: now_ns, top: 0, page: 0, lines: 0, whole: false, form: None, sending: false, closed }
    }

    /// Nanoseconds that an approval still has to wait.
    pub fn pause(&self, now_ns: i64) -> Option<u64> {
        let over = self.since_ns.saturating_add(PAUSE_NS);
        let left = u64::try_from(over.saturating_sub(now_ns)).ok().filter(|left| *left > 0);
        left.filter(|_| is_critical(&self.review))
    }

    /// What the last drawing found.
    pub fn drawn(&mut self, page: usize, lines: usize) {
        (self.page, self.lines) = (page, lines);
        self.top = self.top.min(lines.saturating_sub(page));
        self.whole |= self.top + page >= lines;
    }

    fn scroll(&mut self, to: usize) {
        self.top = to.min(self.lines.saturating_sub(self.page));
    }

    fn choice(&self, form: &Form) -> Choice {
        let own = self.review.request.as_ref().and_then(|r| r.verdict.as_ref()).map(|v| v.category.clone());
        let (scope, categories, max_execs) = match (form.approve, form.reach) {
            (false, _) => ("once", Vec::new(), 0),
            (true, Reach::Once) => ("once", Vec::new(), 1),
            (true, Reach::Kind) => ("kind", Vec::new(), KIND_EXECS),
            (true, Reach::Root) => ("root", own.into_iter().collect(), ROOT_EXECS),
        };
        Choice { approve: form.approve, reason: form.reason.clone(), scope: scope.to_owned(), categories, max_execs }
    }

    /// The next reach, as Tab chooses it.
    fn after(&self, reach: Reach) -> Reach {
        let offers = self.review.request.as_ref().is_some_and(|request| !request.kinds.is_empty());
        match reach {
            Reach::Once if offers => Reach::Kind,
            Reach::Once | Reach::Kind => Reach::Root,
            Reach::Root => Reach::Once,
        }
    }
}

/// Why a request cannot be decided any more, in words.
fn over(review: &Review) -> Option<String> {
    if review.state == "pending" {
        return None;
    }
    let by = if review.reviewer.is_empty() { String::new() } else { format!(" by {}", escape_str(&review.reviewer)) };
    let why = if review.reason.is_empty() { String::new() } else { format!(": {}", escape_str(&review.reason)) };
    Some(format!("{}{by}{why}", escape_str(&review.state)))
}

// === impl State ===

impl State {
    /// Nothing is known yet.
    pub fn new(color: bool) -> Self {
        Self { color, ..Self::default() }
    }

    fn say(&mut self, mood: Mood, text: String) {
        self.notice = Some((mood, text));
    }

    /// Takes what came from the collector.
    pub fn news(&mut self, news: News, now_ns: i64) {
        match news {
            News::List(Ok(reviews)) => {
                self.lost = None;
                self.listed(reviews);
            }
            News::List(Err(error)) => self.lost = Some(escape_str(&error.message)),
            News::Shown(id, Ok(review)) => self.shown(&id, *review, now_ns),
            News::Shown(id, Err(error)) => self.not_shown(&id, &escape_str(&error.message)),
            News::Decided(id, sent) => self.decided(&id, sent),
        }
    }

    fn listed(&mut self, reviews: Vec<Review>) {
        let is_there = reviews.iter().any(|review| id(review) == self.selected);
        if !is_there {
            // The one that takes the place of the one that went.
            let before = self.reviews.iter().flatten().position(|review| id(review) == self.selected);
            let next = reviews.get(before.unwrap_or(0)).or(reviews.last());
            let gone = std::mem::replace(&mut self.selected, next.map(|r| id(r).to_owned()).unwrap_or_default());
            if before.is_some() && self.detail.is_none() {
                self.say(Mood::Bad, format!("request {} does not wait any more", escape_str(&gone)));
            }
        }
        self.reviews = Some(reviews);
    }

    fn shown(&mut self, of: &str, review: Review, now_ns: i64) {
        if let Some(detail) = self.detail.as_mut().filter(|detail| id(&detail.review) == of) {
            let digest = |review: &Review| review.request.as_ref().map(|r| r.digest.clone()).unwrap_or_default();
            let changed = (digest(&review) != digest(&detail.review))
                .then(|| "the collector shows another request under this id: nothing is decided here".to_owned());
            let is_other = changed.is_some();
            if let Some(why) = changed.or_else(|| over(&review)) {
                detail.form = None;
                detail.closed.get_or_insert(why);
            }
            if !is_other {
                // Who decided, and why, is part of what is shown.
                (detail.review.state, detail.review.reviewer) = (review.state, review.reviewer);
                detail.review.reason = review.reason;
            }
            return;
        }
        if self.opening.as_deref() == Some(of) {
            self.opening = None;
            self.detail = Some(Detail::new(review, now_ns));
        }
    }

    fn not_shown(&mut self, of: &str, why: &str) {
        if self.opening.as_deref() == Some(of) {
            self.opening = None;
            self.say(Mood::Bad, why.to_owned());
        } else if let Some(detail) = self.detail.as_mut().filter(|detail| id(&detail.review) == of) {
            // Whether it is gone or the collector is: the next answer says.
            self.notice = Some((Mood::Bad, why.to_owned()));
            detail.form = detail.form.take().filter(|_| detail.closed.is_none());
        }
    }

    fn decided(&mut self, of: &str, sent: Result<u64>) {
        let open = self.detail.as_mut().filter(|detail| id(&detail.review) == of);
        match sent {
            Ok(leaf) => {
                if let Some(detail) = open {
                    detail.closed = Some(format!("decided here, in the log at leaf {leaf}"));
                    (detail.form, detail.sending) = (None, false);
                }
                self.say(Mood::Good, format!("decided {}; in the log at leaf {leaf}", escape_str(of)));
            }
            Err(error) => {
                if let Some(detail) = open {
                    (detail.form, detail.sending) = (None, false);
                }
                self.say(Mood::Bad, format!("NOT decided: {}", escape_str(&error.message)));
            }
        }
    }

    /// Takes a key.
    pub fn event(&mut self, event: &Event, now_ns: i64) -> Action {
        let Event::Key(key) = event else { return Action::None };
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Action::Quit } else { Action::None };
        }
        let form = self.detail.as_ref().is_some_and(|detail| detail.form.is_some());
        match (&self.detail, form) {
            (None, _) => self.list_key(key),
            (Some(_), false) => self.detail_key(key, now_ns),
            (Some(_), true) => self.form_key(key, now_ns),
        }
    }

    fn list_key(&mut self, key: &KeyEvent) -> Action {
        match key.code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown => self.step(8),
            KeyCode::PageUp => self.step(-8),
            KeyCode::Home => self.step(isize::MIN),
            KeyCode::End => self.step(isize::MAX),
            KeyCode::Enter if !self.selected.is_empty() => {
                self.notice = None;
                self.opening = Some(self.selected.clone());
                return Action::Open(self.selected.clone());
            }
            _ => {}
        }
        Action::None
    }

    fn step(&mut self, by: isize) {
        let reviews = self.reviews.as_deref().unwrap_or_default();
        let at = reviews.iter().position(|review| id(review) == self.selected).unwrap_or(0);
        let to = at.saturating_add_signed(by).min(reviews.len().saturating_sub(1));
        self.selected = reviews.get(to).map(|review| id(review).to_owned()).unwrap_or_default();
        self.notice = None;
    }

    fn detail_key(&mut self, key: &KeyEvent, now_ns: i64) -> Action {
        let Some(detail) = &mut self.detail else { return Action::None };
        let page = detail.page.saturating_sub(1).max(1);
        match key.code {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => {
                (self.detail, self.notice) = (None, None);
                return Action::Close;
            }
            KeyCode::Down | KeyCode::Char('j') => detail.scroll(detail.top + 1),
            KeyCode::Up | KeyCode::Char('k') => detail.scroll(detail.top.saturating_sub(1)),
            KeyCode::PageDown | KeyCode::Char(' ') => detail.scroll(detail.top + page),
            KeyCode::PageUp => detail.scroll(detail.top.saturating_sub(page)),
            KeyCode::Home | KeyCode::Char('g') => detail.scroll(0),
            KeyCode::End | KeyCode::Char('G') => detail.scroll(usize::MAX),
            KeyCode::Char(answer @ ('a' | 'd')) => self.answer(answer == 'a', now_ns),
            _ => {}
        }
        Action::None
    }

    /// Begins an answer, unless it is too early or too late for one.
    fn answer(&mut self, approve: bool, now_ns: i64) {
        let Some(detail) = &mut self.detail else { return };
        let refused = match (&detail.closed, detail.pause(now_ns)) {
            (Some(why), _) => Some(format!("nothing to decide: {why}")),
            (None, _) if detail.sending => Some("a decision is on its way".to_owned()),
            (None, _) if !approve => None,
            (None, _) if is_critical(&detail.review) && !detail.whole => {
                Some("critical risk: read to the end first (PgDn)".to_owned())
            }
            (None, Some(left)) => {
                Some(format!("critical risk: look at it for {} s more", left.div_ceil(1_000_000_000)))
            }
            (None, None) => None,
        };
        match refused {
            Some(why) => self.say(Mood::Bad, why),
            None => {
                // What is being answered stands above the answer.
                detail.scroll(0);
                detail.form = Some(Form { approve, reach: Reach::Once, reason: String::new(), word: None });
                self.notice = None;
            }
        }
    }

    fn form_key(&mut self, key: &KeyEvent, now_ns: i64) -> Action {
        let Some(detail) = &mut self.detail else { return Action::None };
        let critical = is_critical(&detail.review);
        let next = detail.form.as_ref().map_or(Reach::Once, |form| detail.after(form.reach));
        let Some(form) = &mut detail.form else { return Action::None };
        let field = form.word.as_mut().unwrap_or(&mut form.reason);
        match key.code {
            KeyCode::Esc => detail.form = None,
            KeyCode::Char(c) if !is_hidden(c) && field.len() < REASON_MAX => field.push(c),
            KeyCode::Backspace => {
                field.pop();
            }
            KeyCode::Tab if form.approve && form.word.is_none() => form.reach = next,
            KeyCode::Enter if form.approve && critical && form.word.is_none() => form.word = Some(String::new()),
            KeyCode::Enter => return self.send(now_ns),
            _ => {}
        }
        Action::None
    }

    fn send(&mut self, now_ns: i64) -> Action {
        let Some(detail) = &mut self.detail else { return Action::None };
        let Some(form) = detail.form.clone() else { return Action::None };
        let words = words(&detail.review);
        if detail.sending || detail.closed.is_some() {
            return Action::None;
        }
        if form.approve && is_critical(&detail.review) {
            let typed = form.word.as_deref().unwrap_or_default();
            if !confirms(&detail.review, 1, typed) || detail.pause(now_ns).is_some() {
                if let Some(form) = &mut detail.form {
                    form.word = Some(String::new());
                }
                self.say(Mood::Bad, format!("NOT approved: type {}", words.join(" or ")));
                return Action::None;
            }
        }
        detail.sending = true;
        let choice = detail.choice(&form);
        Action::Decide(Box::new(detail.review.clone()), choice)
    }
}

#[cfg(test)]
mod tests;
