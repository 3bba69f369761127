//! What is on the screen at 80 columns and 24 lines, and what keys do there.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::exit::{CliError, Exit};
use crate::review::screen::draw;
use crate::testing;

const SECOND: i64 = 1_000_000_000;

fn key(code: KeyCode) -> Event {
    Event::Key(KeyEvent::new(code, KeyModifiers::NONE))
}

struct Screen {
    terminal: Terminal<TestBackend>,
    state: State,
    now: i64,
}

impl Screen {
    fn new(reviews: Vec<Review>, now: i64) -> Screen {
        let terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal");
        let mut state = State::new(false);
        state.news(News::List(Ok(reviews)), now);
        Screen { terminal, state, now }
    }

    /// The screen as text.
    fn text(&mut self) -> String {
        self.terminal.draw(|frame| draw::draw(frame, &mut self.state, self.now)).expect("drawn");
        self.terminal.backend().to_string()
    }

    fn press(&mut self, code: KeyCode) -> Action {
        let action = self.state.event(&key(code), self.now);
        self.text();
        action
    }

    fn typed(&mut self, text: &str) {
        text.chars().for_each(|c| assert_eq!(self.press(KeyCode::Char(c)), Action::None));
    }

    /// Opens the selected one as the collector would answer.
    fn open(&mut self, review: &Review) {
        assert_eq!(self.press(KeyCode::Enter), Action::Open(id(review).to_owned()));
        self.state.news(News::Shown(id(review).to_owned(), Ok(Box::new(review.clone()))), self.now);
        self.text();
    }
}

fn with(id: &str, risk: u32, argv: &[&[u8]]) -> Review {
    let (mut review, _) = testing::review();
    let request = review.request.as_mut().expect("a request");
    request.request_id = id.to_owned();
    request.digest = vec![u8::try_from(risk).expect("small"); 32];
    request.verdict.as_mut().expect("a verdict").risk = risk;
    request.facts.as_mut().expect("facts").argv = argv.iter().map(|a| a.to_vec()).collect();
    review
}

fn now() -> i64 {
    testing::review().1
}

fn ordinary() -> Review {
    testing::review().0
}

fn critical() -> Review {
    with("01KG9F6V00ABCDEFGHJKMNPQRS", 92, &[b"rm", b"-rf", b"/srv"])
}

/// What an agent writes that wants to be taken for something else.
fn hostile() -> Review {
    let long = vec![b'x'; 3000];
    let words: [&[u8]; 6] = [
        b"bash",
        b"\x1b[2J\x1b[H\x1b]0;owned\x07approve",
        "\u{202e}fr- mr\u{2066}".as_bytes(),
        b"\n\rrisk 0  4m left\x9b31m",
        &long,
        b"the-last-argument",
    ];
    with("01KG9F6W00ABCDEFGHJKMNPQRS", 85, &words)
}

#[test]
fn the_list_shows_what_waits() {
    let mut screen = Screen::new(vec![ordinary(), critical(), hostile()], now());
    screen.press(KeyCode::Down);
    insta::assert_snapshot!(screen.text());
}

#[test]
fn a_request_is_shown_whole_page_by_page() {
    let mut screen = Screen::new(vec![ordinary()], now());
    screen.open(&ordinary());
    insta::assert_snapshot!(screen.text());
}

#[test]
fn critical_risk_takes_the_whole_request_a_pause_and_a_typed_word() {
    let mut screen = Screen::new(vec![critical()], now());
    screen.open(&critical());
    screen.press(KeyCode::Char('a'));
    assert!(screen.text().contains("read to the end first"), "{}", screen.text());
    screen.press(KeyCode::End);
    screen.now += 3 * SECOND;
    screen.press(KeyCode::Char('a'));
    assert!(screen.text().contains("look at it for 7 s more"), "{}", screen.text());
    screen.now += 7 * SECOND;
    screen.press(KeyCode::Char('a'));
    screen.typed("clean up");
    assert_eq!(screen.press(KeyCode::Enter), Action::None);
    screen.typed("yes");
    insta::assert_snapshot!(screen.text());
    assert_eq!(screen.press(KeyCode::Enter), Action::None);
    assert!(screen.text().contains("NOT approved: type rm or MNPQRS"), "{}", screen.text());
    screen.typed("rm");
    let Action::Decide(review, choice) = screen.press(KeyCode::Enter) else { panic!("nothing was sent") };
    assert_eq!(*review, critical());
    assert_eq!(
        (choice.approve, choice.scope.as_str(), choice.max_execs, choice.reason.as_str()),
        (true, "once", 1, "clean up")
    );
    // Once is enough.
    assert_eq!(screen.press(KeyCode::Enter), Action::None);
}

#[test]
fn a_denial_takes_no_pause_and_says_why() {
    let mut screen = Screen::new(vec![critical()], now());
    screen.open(&critical());
    screen.press(KeyCode::Char('d'));
    screen.typed("not now");
    screen.press(KeyCode::Tab);
    let Action::Decide(review, choice) = screen.press(KeyCode::Enter) else { panic!("nothing was sent") };
    assert_eq!(*review, critical());
    assert_eq!(choice, Choice { reason: "not now".into(), scope: "once".into(), ..Choice::default() });
    screen.state.news(News::Decided(id(&critical()).to_owned(), Ok(77)), screen.now);
    assert!(screen.text().contains("in the log at leaf 77"), "{}", screen.text());
    screen.press(KeyCode::Char('a'));
    assert!(screen.text().contains("nothing to decide"), "{}", screen.text());
}

#[test]
fn what_somebody_else_decided_is_said_and_nothing_is_sent() {
    let mut screen = Screen::new(vec![ordinary(), critical()], now());
    screen.open(&ordinary());
    screen.press(KeyCode::Char('a'));
    screen.typed("fine");
    let mut decided = ordinary();
    (decided.state, decided.reviewer, decided.reason) = ("denied".into(), "carol".into(), "no".into());
    screen.state.news(News::Shown(id(&ordinary()).to_owned(), Ok(Box::new(decided))), screen.now);
    screen.state.news(News::List(Ok(vec![critical()])), screen.now);
    assert_eq!(screen.press(KeyCode::Enter), Action::None);
    screen.press(KeyCode::Char('a'));
    insta::assert_snapshot!(screen.text());
    assert_eq!(screen.press(KeyCode::Esc), Action::Close);
    // Enter opens what is selected by now, and that is what is on the screen.
    assert!(screen.text().contains(">   92"), "{}", screen.text());
    assert_eq!(screen.press(KeyCode::Enter), Action::Open(id(&critical()).to_owned()));
}

#[test]
fn a_decision_is_about_what_is_shown_whatever_comes_meanwhile() {
    let mut screen = Screen::new(vec![ordinary()], now());
    screen.open(&ordinary());
    screen.press(KeyCode::Char('a'));
    screen.press(KeyCode::Tab);
    assert!(screen.text().contains("APPROVE up to 200 execs of its kinds in this session, up to risk 59"));
    screen.press(KeyCode::Tab);
    screen.state.news(News::List(Ok(vec![critical()])), screen.now);
    // An answer for another one changes nothing here.
    screen.state.news(News::Shown(id(&critical()).to_owned(), Ok(Box::new(critical()))), screen.now);
    let Action::Decide(review, choice) = screen.press(KeyCode::Enter) else { panic!("nothing was sent") };
    assert_eq!(*review, ordinary());
    assert_eq!(
        (choice.scope.as_str(), choice.categories, choice.max_execs),
        ("root", vec!["vcs.write".to_owned()], 20)
    );
    // The collector may still say no: then nothing is decided, and that is said.
    let no = CliError::new(Exit::No, "request was denied by carol\u{1b}[2J");
    screen.state.news(News::Decided(id(&ordinary()).to_owned(), Err(no)), screen.now);
    assert!(screen.text().contains("NOT decided: request was denied by carol\\x1b[2J"), "{}", screen.text());

    // Another request under the same id is not what was shown.
    let mut screen = Screen::new(vec![ordinary()], now());
    screen.open(&ordinary());
    screen.press(KeyCode::Char('a'));
    let other = with(id(&ordinary()), 1, &[b"true"]);
    screen.state.news(News::Shown(id(&other).to_owned(), Ok(Box::new(other))), screen.now);
    assert_eq!(screen.press(KeyCode::Enter), Action::None);
    assert!(screen.text().contains("another request under this id"), "{}", screen.text());
    assert!(screen.text().contains("git commit"), "what was shown stays on the screen");
}

#[test]
fn hostile_arguments_reach_the_screen_escaped_and_whole() {
    let mut screen = Screen::new(vec![hostile()], now());
    let listed = screen.text();
    screen.open(&hostile());
    let (mut all, mut pages) = (screen.text(), 1);
    while screen.text().contains("more below") {
        screen.press(KeyCode::PageDown);
        all.push_str(&screen.text());
        pages += 1;
        assert!(pages < 20, "{all}");
    }
    for text in [&listed, &all] {
        assert!(!text.chars().any(|c| c != '\n' && is_hidden(c)), "{text}");
    }
    assert!(pages > 2);
    for shown in [
        "\\x1b[2J\\x1b[H\\x1b]0;owned\\x07approve",
        "\\u202efr- mr\\u2066",
        "\\n\\rrisk 0  4m left\\x9b31m",
        "the-last-argument",
    ] {
        let squeezed = |text: &str| text.chars().filter(|c| !" \n\"".contains(*c)).collect::<String>();
        assert!(squeezed(&all).contains(&squeezed(shown)), "{shown}: {all}");
    }
    assert!(all.contains("the agent's own words: untrusted"), "{all}");
}

#[test]
fn no_answer_is_said_and_what_was_shown_stays() {
    let mut screen = Screen::new(vec![ordinary()], now());
    screen.state.news(News::List(Err(CliError::new(Exit::Unavailable, "connection refused"))), screen.now);
    let text = screen.text();
    assert!(text.contains("may be old: connection refused") && text.contains("git commit"), "{text}");
    screen.state.news(News::List(Ok(vec![])), screen.now);
    let text = screen.text();
    assert!(text.contains("nothing waits") && text.contains("does not wait any more"), "{text}");
    assert_eq!(screen.press(KeyCode::Enter), Action::None);
    let quit = Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
    assert_eq!(screen.state.event(&quit, screen.now), Action::Quit);
}

#[test]
fn every_size_of_a_terminal_is_drawn() {
    for (width, height) in [(1, 1), (39, 24), (40, 10), (200, 60), (80, 24)] {
        let mut screen = Screen::new(vec![ordinary(), hostile()], now());
        screen.terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        screen.text();
        screen.open(&ordinary());
        screen.press(KeyCode::Char('a'));
        screen.typed(&"reason ".repeat(60));
        screen.press(KeyCode::Esc);
        screen.press(KeyCode::End);
    }
}

#[test]
fn the_word_that_confirms_can_be_typed() {
    let mut review = critical();
    assert_eq!(words(&review), ["rm", "MNPQRS"]);
    let facts = review.request.as_mut().and_then(|r| r.facts.as_mut()).expect("facts");
    facts.files[0].path = "/tmp/a\u{202e}b".as_bytes().to_vec();
    assert_eq!(words(&review), ["MNPQRS"]);
}
