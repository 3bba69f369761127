//! Tables for people: columns two spaces apart, every cell wrapped inside its column, nothing ever cut.
//!
//! It must not escape: cells come in safe to print (see `text`). Fails: never; a terminal that is too narrow gets long lines.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

const GAP: usize = 2;
/// Lines below a row are indented by the first column, at most so much.
const BELOW_MAX: usize = 4;
/// Narrowest width that the growing column is wrapped to.
const GROW_MIN: usize = 24;

/// How a cell is coloured on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Nothing special.
    Plain,
    /// Went well.
    Good,
    /// A person should look.
    Warn,
    /// Refused or failed.
    Bad,
    /// Beside the point.
    Dim,
}

impl Tone {
    /// Wraps `text` in the escape sequence of this tone.
    pub fn paint(self, text: &str) -> String {
        let code = match self {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// One cell: text that is safe to print, and its tone.
#[derive(Clone, Debug)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell in a tone.
    pub fn toned(text: impl Into<String>, tone: Tone) -> Cell {
        Cell { text: text.into(), tone }
    }

    /// Its text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its tone.
    pub fn tone(&self) -> Tone {
        self.tone
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell { text: text.into(), tone: Tone::Plain }
    }
}

/// A column: its title, and how wide it may become.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    max: usize,
    right: bool,
}

/// A column that wraps beyond `max` columns of the terminal.
pub const fn left(title: &'static str, max: usize) -> Column {
    Column { title, max, right: false }
}

/// A right-aligned column, for numbers.
pub const fn right(title: &'static str, max: usize) -> Column {
    Column { title, max, right: true }
}

/// The column that takes what the others leave; at most one in a table.
pub const fn grow(title: &'static str) -> Column {
    Column { title, max: usize::MAX, right: false }
}

/// Rows under titles. A row may have lines below it that span the whole width, indented by the first column.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    cells: Vec<Cell>,
    below: Vec<Cell>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &[Column]) -> Table {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(Row { cells: cells.into_iter().collect(), below: Vec::new() });
    }

    /// Adds a line below the last row.
    pub fn below(&mut self, cell: impl Into<Cell>) {
        if let Some(row) = self.rows.last_mut() {
            row.below.push(cell.into());
        }
    }

    /// True when there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Renders the titles and all rows for a terminal of `width` columns.
    pub fn render(&self, width: usize, color: bool) -> String {
        let mut out = String::new();
        for line in self.lines(width) {
            for piece in line {
                out.push_str(&if color { piece.tone.paint(&piece.text) } else { piece.text });
            }
            out.push('\n');
        }
        out
    }

    /// The same, each line in pieces of one tone.
    pub fn lines(&self, width: usize) -> Vec<Vec<Cell>> {
        let widths = self.widths(width);
        let titles: Vec<Cell> = self.columns.iter().map(|c| Cell::toned(c.title, Tone::Dim)).collect();
        let mut lines = Vec::new();
        if self.columns.iter().any(|c| !c.title.is_empty()) {
            self.row_lines(&mut lines, &titles, &widths);
        }
        for row in &self.rows {
            self.row_lines(&mut lines, &row.cells, &widths);
            let indent = widths.first().map_or(0, |w| (*w).min(BELOW_MAX) + GAP);
            for cell in &row.below {
                for line in wrap(&cell.text, width.saturating_sub(indent).max(GROW_MIN)) {
                    lines.push(vec![" ".repeat(indent).into(), Cell::toned(line, cell.tone)]);
                }
            }
        }
        lines
    }

    fn widths(&self, width: usize) -> Vec<usize> {
        let natural = |i: usize, column: &Column| {
            let cells = self.rows.iter().filter_map(|r| r.cells.get(i)).flat_map(|c| c.text.split('\n'));
            cells.map(UnicodeWidthStr::width).max().unwrap_or(0).max(column.title.width()).min(column.max)
        };
        let mut widths: Vec<usize> = self.columns.iter().enumerate().map(|(i, c)| natural(i, c)).collect();
        let gaps = GAP * self.columns.len().saturating_sub(1);
        let fixed: usize = widths.iter().zip(&self.columns).filter(|(_, c)| c.max != usize::MAX).map(|(w, _)| w).sum();
        for (w, column) in widths.iter_mut().zip(&self.columns) {
            if column.max == usize::MAX {
                *w = (*w).min(width.saturating_sub(fixed + gaps).max(GROW_MIN));
            }
        }
        widths
    }

    fn row_lines(&self, out: &mut Vec<Vec<Cell>>, row: &[Cell], widths: &[usize]) {
        let wrapped: Vec<Vec<String>> = row.iter().zip(widths).map(|(cell, w)| wrap(&cell.text, *w)).collect();
        let height = wrapped.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..height {
            let (mut pieces, mut pending) = (Vec::new(), 0);
            for (((lines, cell), w), column) in wrapped.iter().zip(row).zip(widths).zip(&self.columns) {
                let text = lines.get(line).map_or("", String::as_str);
                let fill = w.saturating_sub(text.width());
                let before = if column.right { fill } else { 0 };
                if !text.is_empty() {
                    if pending + before > 0 {
                        pieces.push(" ".repeat(pending + before).into());
                    }
                    pieces.push(Cell::toned(text, cell.tone));
                    pending = 0;
                }
                // Blanks are held back so that no line ends in them.
                pending += if text.is_empty() { w + GAP } else { fill - before + GAP };
            }
            out.push(pieces);
        }
    }
}

/// Wraps at blanks where there are some, inside words where not; keeps every character.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    text.split('\n').flat_map(|line| wrap_line(line, width)).collect()
}

fn wrap_line(line: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut current = String::new();
    let mut used = 0;
    for word in line.split_inclusive(' ') {
        let needed = word.trim_end_matches(' ').width();
        if used > 0 && used + needed > width {
            lines.push(current.trim_end().to_owned());
            current.clear();
            used = 0;
        }
        for c in word.chars() {
            let w = c.width().unwrap_or(0);
            if used + w > width && c != ' ' {
                lines.push(std::mem::take(&mut current));
                used = 0;
            }
            current.push(c);
            used += w;
        }
    }
    lines.push(current.trim_end().to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&[right("#", 4), left("RESULT", 9), grow("COMMAND")]);
        table.row(["1".into(), Cell::toned("allowed", Tone::Good), "git status".into()]);
        table.row([
            "2".into(),
            Cell::toned("denied", Tone::Bad),
            "bash -c 'for i in 1 2 3; do echo a very long command that does not fit one line; done'".into(),
        ]);
        table
    }

    #[test]
    fn every_line_fits_and_nothing_is_cut() {
        let text = sample().render(60, false);
        assert!(text.lines().all(|l| l.width() <= 60), "{text}");
        let joined: String = text.split_whitespace().collect();
        assert!(joined.contains("doechoaverylongcommandthatdoesnotfitoneline;done'"), "{joined}");
        assert!(text.lines().all(|l| !l.ends_with(' ')));
    }

    #[test]
    fn colour_only_when_asked() {
        assert!(!sample().render(80, false).contains('\x1b'));
        assert!(sample().render(80, true).contains("\x1b[31mdenied\x1b[0m"));
    }

    #[test]
    fn long_words_are_split_not_dropped() {
        assert_eq!(wrap("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrap("ab cd ef", 5), ["ab cd", "ef"]);
        assert_eq!(wrap("", 5), [""]);
    }
}
