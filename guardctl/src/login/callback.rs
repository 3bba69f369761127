//! Where the issuer sends the person's browser back to: one address of this machine, for one login.
//!
//! Anything on this machine may connect, so everything is bounded, and what does not bring the `state` of this login changes nothing
//! and is waited past. It must not serve anything but one short page. Fails: what the issuer said instead of a code.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::exit::{CliError, Exit, Result};

/// Longest head of a request.
const HEAD_MAX: usize = 16 << 10;
/// Longest time of a connection.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at a time: browsers open more than they use.
const CONNECTIONS: usize = 16;

/// What a browser has to bring.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Of this login.
    pub state: String,
    /// Who has to have sent it, where it says who.
    pub issuer: String,
}

/// Waits for the code.
pub async fn code(listener: TcpListener, wanted: &Wanted) -> Result<String> {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if open.len() < CONNECTIONS => {
                let (stream, _) = accepted.map_err(|e| CliError::new(Exit::Internal, format_args!("no connection: {e}")))?;
                let wanted = wanted.clone();
                open.spawn(async move { tokio::time::timeout(TIMEOUT, one(stream, &wanted)).await.ok().flatten() });
            }
            Some(ended) = open.join_next() => {
                if let Ok(Some(brought)) = ended {
                    return brought;
                }
            }
        }
    }
}

async fn one(mut stream: TcpStream, wanted: &Wanted) -> Option<Result<String>> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() > HEAD_MAX || stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let (status, text, brought) = match brought(head.lines().next()?, wanted) {
        Some(Ok(code)) => {
            ("200 OK", "Guard has your answer. You can close this window and go back to the terminal.", Some(Ok(code)))
        }
        Some(Err(error)) => ("400 Bad Request", "The login did not succeed. The terminal says why.", Some(Err(error))),
        None => ("404 Not Found", "This is not the address of a login that is waited for.", None),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\ncache-control: no-store\r\n\
         referrer-policy: no-referrer\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n{text}",
        text.len()
    );
    // Whether the browser hears of it changes nothing.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
    brought
}

/// What the first line of a request brings, if it is of this login.
fn brought(line: &str, wanted: &Wanted) -> Option<Result<String>> {
    let target = line.strip_prefix("GET ")?.split(' ').next()?;
    let fields: Vec<(String, String)> = target
        .strip_prefix("/callback?")?
        .split('&')
        .filter_map(|f| f.split_once('='))
        .map(|(n, v)| (decoded(n), decoded(v)))
        .collect();
    let field = |name: &str| fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    if field("state") != Some(wanted.state.as_str()) {
        return None;
    }
    if let Some(issuer) = field("iss").filter(|issuer| *issuer != wanted.issuer) {
        let text = format!("the answer is of another issuer: {issuer:?} instead of {:?}", wanted.issuer);
        return Some(Err(CliError::new(Exit::Denied, text)));
    }
    if let Some(error) = field("error") {
        let more = field("error_description").map(|d| format!(": {d}")).unwrap_or_default();
        return Some(Err(CliError::new(Exit::Denied, format_args!("the issuer says no: {error}{more}"))));
    }
    field("code").map(|code| Ok(code.to_owned()))
}

/// A field of a form; what is no text becomes a replacement character.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = (*first == b'%').then(|| after.get(..2)).flatten();
        let byte =
            hex.and_then(|pair| std::str::from_utf8(pair).ok()).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted { state: "s-1".into(), issuer: "https://id.example".into() }
    }

    #[test]
    fn only_what_brings_the_state_counts() {
        let get = |target: &str| brought(&format!("GET {target} HTTP/1.1"), &wanted());
        assert_eq!(get("/callback?code=a%2Bb+c&state=s-1"), Some(Ok("a+b c".to_owned())));
        assert_eq!(get("/callback?state=s-1&code=x&iss=https%3A%2F%2Fid.example"), Some(Ok("x".to_owned())));
        for other in
            ["/callback?code=x&state=s-2", "/callback?code=x", "/favicon.ico", "/callback", "/callback?state=s-1"]
        {
            assert_eq!(get(other), None, "{other}");
        }
        assert_eq!(brought("POST /callback?code=x&state=s-1 HTTP/1.1", &wanted()), None);
        let error = |target| get(target).expect("an answer").expect_err("refused").message;
        assert!(
            error("/callback?state=s-1&error=access_denied&error_description=not%20you")
                .contains("access_denied: not you")
        );
        assert!(error("/callback?state=s-1&code=x&iss=https%3A%2F%2Fevil.example").contains("another issuer"));
        assert_eq!(decoded("%zz%4%c3%a9%"), "%zz%4é%");
    }

    #[tokio::test]
    async fn others_who_connect_are_waited_past() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("address");
        let wanted = wanted();
        let browser = async {
            // Says nothing, like a browser's connection in advance.
            let _idle = TcpStream::connect(address).await.expect("connects");
            let mut answers = vec![];
            for target in ["/favicon.ico", "/callback?code=evil&state=guessed", "/callback?code=good&state=s-1"] {
                let mut stream = TcpStream::connect(address).await.expect("connects");
                stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.expect("sent");
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.expect("answer");
                answers.push(answer[9..12].to_owned());
            }
            answers
        };
        let (code, answers) = tokio::join!(code(listener, &wanted), browser);
        assert_eq!(code.expect("a code"), "good");
        assert_eq!(answers, ["404", "404", "200"]);
    }
}
