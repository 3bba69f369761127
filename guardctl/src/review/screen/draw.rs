//! Draws the state. It needs 80 columns and 24 lines to show well, says so below 40 and 10, and uses plain characters alone.
//!
//! It must not draw text of others but through `text` and `show`, which leave nothing for a terminal to act on. What does not fit into
//! a line of the list ends in `...`; in the request itself nothing is cut. Fails: never.

use guard_proto::v1::Review;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::state::{Detail, Form, Mood, Reach, State};
use crate::duration;
use crate::record::command;
use crate::review::critical::{CRITICAL_RISK, id, is_critical, risk, words};
use crate::review::{KIND_EXECS, show, time_left};
use crate::table::{Cell, Tone};
use crate::text::escape_str;
use crate::time;

const WIDTH_MIN: u16 = 40;
const HEIGHT_MIN: u16 = 10;
/// Lines of one request in the list.
const ROW_LINES: usize = 2;

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, state: &mut State, now_ns: i64) {
    let area = frame.area();
    if area.width < WIDTH_MIN || area.height < HEIGHT_MIN {
        let text = format!("at least {WIDTH_MIN} columns and {HEIGHT_MIN} lines are needed; q leaves");
        return frame.render_widget(Paragraph::new(text), area);
    }
    let color = state.color;
    let asked = state.detail.as_ref().and_then(|detail| detail.form.as_ref().map(|form| (detail, form)));
    let mut below: Vec<Line<'_>> =
        asked.map_or_else(Vec::new, |(detail, form)| form_lines(detail, form, now_ns, color));
    // Whole, below: the first line holds only so much.
    below.extend(state.detail.iter().filter_map(|detail| {
        let why = detail.closed.as_ref()?;
        Some(Line::styled(format!("NOT OPEN: {why}"), style(Tone::Bad, color)))
    }));
    below.extend(
        state
            .lost
            .iter()
            .map(|why| Line::styled(format!("no answer, what is shown may be old: {why}"), style(Tone::Bad, color))),
    );
    below.extend(state.notice.iter().map(|(mood, text)| {
        Line::styled(text.clone(), style(if *mood == Mood::Good { Tone::Good } else { Tone::Bad }, color))
    }));
    below.push(Line::styled(keys(state), style(Tone::Dim, color)));
    let below: Vec<Line<'_>> = below.into_iter().flat_map(|line| wrapped(&line, usize::from(area.width))).collect();
    let height = u16::try_from(below.len()).unwrap_or(u16::MAX).min(area.height / 2);
    let [title, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(height)]).areas(area);
    match &mut state.detail {
        Some(detail) => request(frame, (title, body), detail, now_ns, color),
        None => list(frame, (title, body), state, now_ns),
    }
    // The last lines are the ones that are written to.
    let skip = below.len().saturating_sub(usize::from(height));
    frame.render_widget(Paragraph::new(below.into_iter().skip(skip).collect::<Vec<_>>()), foot);
}

fn style(tone: Tone, color: bool) -> Style {
    let plain = Style::new();
    match (tone, color) {
        (Tone::Plain, _) => plain,
        (Tone::Good, true) => plain.fg(Color::Green),
        (Tone::Warn, true) => plain.fg(Color::Yellow),
        (Tone::Bad, true) => plain.fg(Color::Red),
        (Tone::Dim, true) => plain.add_modifier(Modifier::DIM),
        // Without colour what a person has to look at is bold.
        (Tone::Bad | Tone::Warn, false) => plain.add_modifier(Modifier::BOLD),
        (Tone::Good | Tone::Dim, false) => plain,
    }
}

/// A line below, wrapped; its style stays.
fn wrapped(line: &Line<'_>, width: usize) -> Vec<Line<'static>> {
    let text: String = line.spans.iter().map(|span| span.content.as_ref()).collect();
    crate::table::wrap(&text, width).into_iter().map(|text| Line::styled(text, line.style)).collect()
}

fn title(frame: &mut Frame<'_>, area: Rect, text: &str, tone: Tone, color: bool) {
    let bar = style(tone, color).add_modifier(Modifier::REVERSED | Modifier::BOLD);
    let text = format!("{text:<width$}", width = usize::from(area.width));
    frame.render_widget(Paragraph::new(Line::styled(text, bar)), area);
}

fn keys(state: &State) -> &'static str {
    match &state.detail {
        None => "up/down select  Enter show  q leave",
        Some(Detail { sending: true, .. }) => "the decision is on its way ...",
        Some(Detail { form: Some(Form { word: Some(_), .. }), .. }) => "Enter approve  Esc back",
        Some(Detail { form: Some(Form { approve: true, .. }), .. }) => "Enter go on  Tab scope  Esc back",
        Some(Detail { form: Some(_), .. }) => "Enter deny  Esc back",
        Some(Detail { closed: Some(_), .. }) => "PgDn/PgUp page  Esc list  q leave",
        Some(_) => "a approve  d deny  PgDn/PgUp page  Esc list  q leave",
    }
}

// === the list ===

fn list(frame: &mut Frame<'_>, (bar, body): (Rect, Rect), state: &State, now_ns: i64) {
    let clock = time::clock(now_ns);
    let (text, tone) = match &state.reviews {
        None => ("guardctl review: asking the collector".to_owned(), Tone::Plain),
        Some(reviews) if reviews.is_empty() => ("guardctl review: nothing waits".to_owned(), Tone::Plain),
        Some(reviews) => {
            let critical = reviews.iter().filter(|review| is_critical(review)).count();
            let more = if critical > 0 { format!(", {critical} of critical risk") } else { String::new() };
            let count = if reviews.len() == 1 { "1 waits".to_owned() } else { format!("{} wait", reviews.len()) };
            (format!("guardctl review: {count}{more}"), if critical > 0 { Tone::Bad } else { Tone::Plain })
        }
    };
    title(frame, bar, &format!("{text}  {clock} UTC"), tone, state.color);
    let reviews = state.reviews.as_deref().unwrap_or_default();
    let fits = (usize::from(body.height).saturating_sub(1) / ROW_LINES).max(1);
    let at = reviews.iter().position(|review| id(review) == state.selected).unwrap_or(0);
    let first = (at + 1).saturating_sub(fits);
    let head = Line::styled("  RISK    LEFT  CATEGORY, AGENT, INITIATOR, HOST", style(Tone::Dim, state.color));
    let rows = reviews.iter().skip(first).take(fits);
    let width = usize::from(body.width);
    let rows = rows.flat_map(|review| row(review, id(review) == state.selected, (now_ns, width, state.color)));
    let lines: Vec<Line<'_>> =
        if reviews.is_empty() { Vec::new() } else { std::iter::once(head).chain(rows).collect() };
    frame.render_widget(Paragraph::new(lines), body);
}

fn row(review: &Review, selected: bool, (now_ns, width, color): (i64, usize, bool)) -> [Line<'static>; ROW_LINES] {
    let request = review.request.clone().unwrap_or_default();
    let (identity, verdict) = (request.identity.unwrap_or_default(), request.verdict.unwrap_or_default());
    let left = time_left(review, now_ns).map_or_else(|| "-".to_owned(), duration::show);
    let who = format!(
        "{} {} for {} on {}",
        escape_str(&verdict.category),
        escape_str(&identity.agent),
        escape_str(&identity.initiator),
        escape_str(&review.host_name)
    );
    let mark = if selected { ">" } else { " " };
    let tone = if is_critical(review) { Tone::Bad } else { Tone::Plain };
    let mut first = style(tone, color);
    let mut second = Style::new();
    if selected {
        first = first.add_modifier(Modifier::REVERSED);
        second = second.add_modifier(Modifier::REVERSED);
    }
    let what = request.facts.as_ref().map(command).unwrap_or_default();
    let line = |text: String, style| Line::styled(short(&text, width), style);
    [line(format!("{mark} {:>4} {left:>7}  {who}", risk(review)), first), line(format!("{mark}     {what}"), second)]
}

/// What fits into a line, and that it is not all.
fn short(text: &str, width: usize) -> String {
    const MORE: &str = "...";
    if text.width() <= width {
        return format!("{text}{}", " ".repeat(width - text.width()));
    }
    let (mut kept, mut used) = (String::new(), 0);
    for c in text.chars() {
        used += c.width().unwrap_or(0);
        if used > width.saturating_sub(MORE.len()) {
            break;
        }
        kept.push(c);
    }
    format!("{kept}{MORE}")
}

// === one request ===

fn request(frame: &mut Frame<'_>, (bar, body): (Rect, Rect), detail: &mut Detail, now_ns: i64, color: bool) {
    let shown = show::lines(&detail.review, now_ns, usize::from(body.width));
    detail.drawn(usize::from(body.height), shown.len());
    let critical = is_critical(&detail.review);
    let risk = format!("risk {}{}", risk(&detail.review), if critical { ": CRITICAL" } else { "" });
    let state = match (&detail.closed, time_left(&detail.review, now_ns)) {
        (Some(_), _) => "NOT OPEN".to_owned(),
        (None, Some(0)) => "its deadline has passed".to_owned(),
        (None, left) => format!("{} left", left.map_or_else(|| "-".to_owned(), duration::show)),
    };
    let last = (detail.top + detail.page).min(detail.lines);
    let more = if last < detail.lines { ", more below" } else { "" };
    let place = format!("lines {}-{last} of {}{more}", detail.top + 1, detail.lines);
    let tone = if critical || detail.closed.is_some() { Tone::Bad } else { Tone::Plain };
    title(frame, bar, &format!("{risk}  {place}  {state}"), tone, color);
    let lines = shown.iter().skip(detail.top).take(detail.page).map(|line| pieces(line, color));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), body);
}

fn pieces(line: &[Cell], color: bool) -> Line<'_> {
    line.iter().map(|cell| Span::styled(cell.text(), style(cell.tone(), color))).collect::<Vec<_>>().into()
}

fn form_lines(detail: &Detail, form: &Form, now_ns: i64, color: bool) -> Vec<Line<'static>> {
    let tone = if form.approve { Tone::Warn } else { Tone::Bad };
    let strong = style(tone, color).add_modifier(Modifier::BOLD);
    let own = detail.review.request.as_ref().and_then(|r| r.verdict.as_ref()).map(|v| escape_str(&v.category));
    let max_risk = detail.review.request.as_ref().map_or(0, |request| request.kinds_max_risk);
    let what = match (form.approve, form.reach) {
        (false, _) => "DENY this request; the reason is told to the agent".to_owned(),
        (true, Reach::Once) => "APPROVE this exec only, once".to_owned(),
        (true, Reach::Kind) => {
            format!("APPROVE up to {KIND_EXECS} execs of its kinds in this session, up to risk {max_risk}")
        }
        (true, Reach::Root) => format!("APPROVE this exec and up to 20 that it starts, of {}", own.unwrap_or_default()),
    };
    let mut lines = vec![Line::styled(what, strong)];
    match &form.word {
        None => lines.push(Line::from(format!("reason: {}_", form.reason))),
        Some(word) => {
            let wait = detail.pause(now_ns).map(|ns| format!(" in {} s", ns.div_ceil(1_000_000_000)));
            let ask = format!(
                "risk {} is critical ({CRITICAL_RISK} or more): to approve{}, type {}",
                risk(&detail.review),
                wait.unwrap_or_default(),
                words(&detail.review).join(" or ")
            );
            lines.push(Line::from(format!("reason: {}", form.reason)));
            lines.push(Line::styled(ask, strong));
            lines.push(Line::from(format!("> {word}_")));
        }
    }
    lines
}
