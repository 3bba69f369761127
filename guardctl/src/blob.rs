//! `guardctl blob`: what records keep outside the log.
//!
//! It must not believe the collector: a blob is shown only if it is what its digest says.

use guard_proto::v1::{Blob, EraseBlobRequest, GetBlobRequest};
use prost::Message;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::args::BlobCommand;
use crate::client;
use crate::config::Config;
use crate::exit::{CliError, Exit, Result};
use crate::output::Out;
use crate::record::text_value;
use crate::text::command_line;

/// Runs `blob …`.
pub async fn run(command: &BlobCommand, config: &Config, out: &Out) -> Result<()> {
    let mut client = client::connect(config).await?;
    match command {
        BlobCommand::Show { id } => {
            let sha256 = parse(id)?;
            let asked = GetBlobRequest { sha256: sha256.clone() };
            let content = client.get_blob(asked).await.map_err(client::refused)?.into_inner().content;
            if Sha256::digest(&content).as_slice() != sha256 {
                return Err(CliError::new(Exit::No, format_args!("what came is not blob {id}: its digest differs")));
            }
            let blob = Blob::decode(content.as_slice())
                .map_err(|e| CliError::new(Exit::Internal, format_args!("blob {id}: {e}")))?;
            if out.is_json() { out.json(&json(id, &blob)) } else { out.print(&text(&blob)) }
        }
        BlobCommand::Erase { id, reason } => {
            let asked = EraseBlobRequest { sha256: parse(id)?, reason: reason.clone() };
            let leaf = client.erase_blob(asked).await.map_err(client::refused)?.into_inner().leaf;
            if out.is_json() {
                return out.json(&json!({"erased": id, "leaf": leaf}));
            }
            out.print(&format!("erased; recorded as leaf {leaf}\n"))
        }
    }
}

fn parse(id: &str) -> Result<Vec<u8>> {
    hex::decode(id)
        .ok()
        .filter(|bytes| bytes.len() == 32)
        .ok_or_else(|| CliError::new(Exit::Usage, format_args!("{id:?} is not a SHA-256 (64 hexadecimal digits)")))
}

fn json(id: &str, blob: &Blob) -> Value {
    json!({"blob": id, "salt": hex::encode(&blob.salt),
        "argv": blob.argv.iter().map(|a| text_value(a)).collect::<Vec<_>>(),
        "secrets": blob.secrets.iter().map(|s| json!({"arg": s.arg, "sha256": hex::encode(&s.sha256)})).collect::<Vec<_>>()})
}

fn text(blob: &Blob) -> String {
    let mut text = String::new();
    if !blob.argv.is_empty() {
        text.push_str(&format!("{}\n", command_line(&blob.argv)));
    }
    for secret in &blob.secrets {
        text.push_str(&format!(
            "argument {}: a secret of SHA-256 {} (after the salt {})\n",
            secret.arg,
            hex::encode(&secret.sha256),
            hex::encode(&blob.salt)
        ));
    }
    text
}
