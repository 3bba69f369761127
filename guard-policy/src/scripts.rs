//! Program text that can be proved to only compute and print: sed scripts and awk programs.
//!
//! What is not recognised counts as able to write or run. Linear in the text.

/// Commands of sed that take nothing after them and stay inside the process.
const SED_PLAIN: &[u8] = b"=dDgGhHnNpPxzF";
/// Commands that may have a number after them.
const SED_NUMBERED: &[u8] = b"lqQ";
/// Flags of `s` other than `e` and `w`.
const SED_FLAGS: &[u8] = b"gpiImM0123456789";
/// Words of awk that start programs, read other input, or reach what the command line does not name.
const AWK_REACHES: &[&str] = &["system", "getline", "@", "ARGV", "ENVIRON", "/inet", "PROCINFO"];

struct Sed<'a> {
    rest: &'a [u8],
}

/// Whether a sed script can only print and replace: no file is read, written or run.
pub(crate) fn sed_is_plain(script: &[u8]) -> bool {
    let mut sed = Sed { rest: script };
    sed.script().is_some()
}

// === impl Sed ===

impl Sed<'_> {
    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn skip(&mut self, any: &[u8]) {
        while self.peek().is_some_and(|b| any.contains(&b)) {
            self.next();
        }
    }

    /// `None`: something in it is not known to be harmless.
    fn script(&mut self) -> Option<()> {
        loop {
            self.skip(b" \t\n;}");
            if self.rest.is_empty() {
                return Some(());
            }
            self.address()?;
            self.skip(b" \t");
            if self.peek() == Some(b',') {
                self.next();
                self.skip(b" \t+~");
                self.address()?;
            }
            self.skip(b" \t!");
            self.command()?;
        }
    }

    fn address(&mut self) -> Option<()> {
        match self.peek() {
            Some(b'/') => {
                self.next();
                self.section(b'/')?;
                self.skip(b"IM");
            }
            Some(b'\\') => {
                self.next();
                let delimiter = self.next()?;
                self.section(delimiter)?;
                self.skip(b"IM");
            }
            Some(b'$') => {
                self.next();
            }
            Some(_) | None => self.skip(b"0123456789~"),
        }
        Some(())
    }

    /// Up to the next delimiter without a backslash before it.
    fn section(&mut self, delimiter: u8) -> Option<()> {
        if matches!(delimiter, b'\n' | b'\\') {
            return None;
        }
        loop {
            match self.next()? {
                b'\\' => {
                    self.next()?;
                }
                b'\n' => return None,
                byte if byte == delimiter => return Some(()),
                _ => {}
            }
        }
    }

    fn line(&mut self) {
        while let Some(byte) = self.next() {
            match byte {
                b'\\' => {
                    self.next();
                }
                b'\n' => return,
                _ => {}
            }
        }
    }

    fn command(&mut self) -> Option<()> {
        match self.next()? {
            b'{' => return Some(()),
            b'#' => {
                while self.next().is_some_and(|b| b != b'\n') {}
                return Some(());
            }
            b':' | b'b' | b't' | b'T' => {
                while self.peek().is_some_and(|b| !matches!(b, b';' | b'\n' | b'}')) {
                    self.next();
                }
            }
            b'a' | b'i' | b'c' => {
                self.line();
                return Some(());
            }
            b's' => {
                let delimiter = self.next()?;
                self.section(delimiter)?;
                self.section(delimiter)?;
                self.skip(SED_FLAGS);
            }
            b'y' => {
                let delimiter = self.next()?;
                self.section(delimiter)?;
                self.section(delimiter)?;
            }
            byte if SED_PLAIN.contains(&byte) => {}
            byte if SED_NUMBERED.contains(&byte) => self.skip(b" 0123456789"),
            _ => return None,
        }
        self.skip(b" \t");
        match self.peek() {
            None | Some(b';' | b'\n' | b'}' | b'#') => Some(()),
            Some(_) => None,
        }
    }
}

/// Whether an awk program can only compute and print to standard output. A redirection is a `>` somewhere after a
/// `print`; before the first one, it compares.
pub(crate) fn awk_is_plain(program: &[u8]) -> bool {
    let Ok(program) = std::str::from_utf8(program) else { return false };
    let prints = program.find("print").and_then(|at| program.get(at..)).unwrap_or_default();
    !prints.contains('>')
        && !program.replace("||", "").contains('|')
        && !AWK_REACHES.iter().any(|word| program.contains(word))
}

#[cfg(test)]
mod tests {
    use super::{awk_is_plain, sed_is_plain};

    #[test]
    fn sed_scripts_that_only_print_are_known() {
        for plain in [
            "p",
            "1,20p",
            "$p",
            "/a b/,/c/d",
            "s/a/b/g",
            "s|/x|/y|2p",
            "s/a\\/b/c/;s/w/e/",
            "1~2d",
            "/x/I!d",
            ":a;N;$!ba;s/\\n/ /g",
            "{:q;N;s/\\n/ /g;t q}",
            "\\,a,p",
            "y/abc/xyz/",
            "/^#/d;/^$/d",
            "10q",
            "a text w file",
            "# w file\np",
            "2,+3p",
            "",
        ] {
            assert!(sed_is_plain(plain.as_bytes()), "{plain}");
        }
        for reaches in [
            "w /tmp/x",
            "1w x",
            "s/a/b/w x",
            "s/a/b/e",
            "s/a/b/gw x",
            "1e id",
            "e",
            "r /etc/shadow",
            "R x",
            "W x",
            "p;w x",
            "a x\nw y",
            "s/a/b",
            "s/a/b/ge",
            "/x/{w y\n}",
            "s,a,b,;e id",
            "1,/x/w y",
            "s\na\nb\n",
            "v",
            "M",
            "p w",
            "y/a/b/e",
            "d e",
            "\\",
            "/x",
        ] {
            assert!(!sed_is_plain(reaches.as_bytes()), "{reaches}");
        }
    }

    #[test]
    fn awk_programs_that_only_print_are_known() {
        for plain in ["{print $1}", "NF>1", "{if (x >= 1 && y > 2) print x}", "a || b", "BEGIN {x=1} $1>x {print}"] {
            assert!(awk_is_plain(plain.as_bytes()), "{plain}");
        }
        for reaches in [
            "{print > \"f\"}",
            "{printf \"a\" >> f}",
            "BEGIN {system(\"id\")}",
            "{print | \"sh\"}",
            "{\"id\" | getline}",
            "{@f()}",
            "BEGIN{ARGV[1]=\"/etc/shadow\"}",
            "BEGIN{print ENVIRON[\"X\"]}",
            "/\"/ {print > \"f\"}",
        ] {
            assert!(!awk_is_plain(reaches.as_bytes()), "{reaches}");
        }
    }
}
