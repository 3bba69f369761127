//! `guard-collector webhook test`: one message to each receiver, and what it answered.
//!
//! It needs no running collector and touches no place in the log. Fails: exit code 69 if one did not take it.

use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::json;

use super::post::{Answer, Poster};
use super::queue::{Message, time};
use super::text::ascii_json;
use crate::config::Config;
use crate::exit::{CollectorError, Exit, Result};
use crate::own::now_ns;

/// The `type` of the message.
pub const KIND: &str = "guard.test";

/// Sends to all, or to the one of that name; a line for each.
pub async fn run(config: &Config, name: Option<&str>) -> Result<String> {
    let chosen: Vec<_> = config.webhooks.iter().filter(|w| name.is_none_or(|name| w.name == name)).collect();
    if chosen.is_empty() {
        let what = name.map_or_else(|| "no [[webhook]]".to_owned(), |name| format!("no [[webhook]] of name {name:?}"));
        return Err(CollectorError::new(Exit::Config, format_args!("the configuration has {what}")));
    }
    let (mut lines, mut failed) = (String::new(), Vec::new());
    for webhook in chosen {
        let poster = Poster::new(webhook).map_err(|e| CollectorError::new(Exit::Config, e))?;
        let internal = |e: &dyn std::fmt::Display| CollectorError::new(Exit::Internal, e);
        let mut random = [0; 8];
        getrandom(&mut random, GetRandomFlags::empty()).map_err(|e| internal(&e))?;
        let data = json!({"webhook": webhook.name, "collector_version": env!("CARGO_PKG_VERSION")});
        let body =
            ascii_json(&json!({"type": KIND, "timestamp": time(now_ns()), "data": data})).map_err(|e| internal(&e))?;
        let message = Message { id: format!("msg_test_{}", hex::encode(random)), leaf: 0, body };
        let said = match poster.send(&message).await {
            Answer::Taken(status, took) => format!("took {} ({status}, {} ms)", message.id, took.as_millis()),
            Answer::Gone => "answers 410 Gone: a running collector would send it nothing more".to_owned(),
            Answer::Failed(why) => why,
        };
        let line = format!("{} {}: {said}", webhook.name, webhook.shown());
        if said.starts_with("took ") {
            lines.push_str(&format!("{line}\n"));
        } else {
            failed.push(line);
        }
    }
    if failed.is_empty() {
        Ok(lines)
    } else {
        Err(CollectorError::new(Exit::Unavailable, format_args!("{lines}{}", failed.join("\n"))))
    }
}
