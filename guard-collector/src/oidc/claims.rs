//! What an ID token must say, and whom it means: its claims against the configuration.
//!
//! It must not see a token whose signature was not verified, and decides with a given time and nothing else. Who is not allowed by
//! name is not allowed. Fails: a text that says which claim is wrong and what was expected.

use serde_json::Value;

use super::config::{Allow, OidcConfig};
use super::jws::shown;
use crate::identity::{Caller, Role};
use crate::pki;

/// What the issuer's clock and the collector's may differ by, in seconds.
pub const SKEW: i64 = 60;
/// A token is exchanged as soon as it is made; an older one comes from elsewhere. In seconds.
pub const AGE_MAX: i64 = 300;
/// Longest `sub`; the specification's limit.
const SUBJECT_MAX: usize = 255;

/// What a token is held to.
pub struct Expected<'a> {
    /// Issuer and client of the configuration.
    pub config: &'a OidcConfig,
    /// What the login began with.
    pub nonce: &'a str,
    /// In seconds since 1970.
    pub now: i64,
}

/// Whom a token means.
#[derive(Debug, PartialEq, Eq)]
pub struct Person {
    /// Who gets the certificate.
    pub caller: Caller,
    /// As the issuer knows them.
    pub subject: String,
    /// When the token was made.
    pub issued: i64,
    /// Its end.
    pub expires: i64,
}

fn text<'a>(claims: &'a Value, name: &str) -> Result<&'a str, String> {
    match claims.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        Some(_) => Err(format!("its claim `{name}` is no text")),
        None => Err(format!("it has no claim `{name}`")),
    }
}

/// A point in time; fractions of a second are cut.
fn time(claims: &Value, name: &str) -> Result<Option<i64>, String> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let whole = value.as_i64().or_else(|| value.as_f64().filter(|s| s.abs() < 1e15).map(|s| s as i64));
    whole.map(Some).ok_or_else(|| format!("its claim `{name}` is no point in time"))
}

fn needed(claims: &Value, name: &str) -> Result<i64, String> {
    time(claims, name)?.ok_or_else(|| format!("it has no claim `{name}`"))
}

impl Expected<'_> {
    /// Whom it means, if it is for this login.
    pub fn person(&self, claims: &Value) -> Result<Person, String> {
        self.audience(claims)?;
        let (issued, expires) = self.times(claims)?;
        let nonce = text(claims, "nonce")?;
        if nonce != self.nonce {
            return Err(
                "it was issued for another login: its `nonce` is not of the key that this one began with".into()
            );
        }
        let subject = text(claims, "sub")?;
        if subject.len() > SUBJECT_MAX {
            return Err(format!("its claim `sub` is longer than {SUBJECT_MAX} bytes"));
        }
        let name = self.name(claims)?;
        let role = self.role(claims, &name)?;
        let caller = pki::caller(&name, role).map_err(|e| e.message)?;
        Ok(Person { caller, subject: subject.to_owned(), issued, expires })
    }

    fn audience(&self, claims: &Value) -> Result<(), String> {
        let (issuer, client) = (&self.config.issuer_text, &self.config.client_id);
        let said = text(claims, "iss")?;
        if said != issuer {
            return Err(format!("its issuer is {:?}, not {issuer:?}", shown(said)));
        }
        let for_us = |value: &Value| value.as_str() == Some(client);
        let (fits, others) = match claims.get("aud") {
            Some(Value::Array(all)) => (all.iter().any(for_us), all.len() > 1),
            Some(one) => (for_us(one), false),
            None => (false, false),
        };
        if !fits {
            return Err(format!("it is for another client: its `aud` does not name {client:?}"));
        }
        // Where it is for several, it says who asked for it.
        match claims.get("azp") {
            Some(azp) if azp.as_str() != Some(client) => Err("another client asked for it (`azp`)".to_owned()),
            None if others => Err("it is for several clients and does not say who asked for it (`azp`)".to_owned()),
            _ => Ok(()),
        }
    }

    fn times(&self, claims: &Value) -> Result<(i64, i64), String> {
        let (now, issued, expires) = (self.now, needed(claims, "iat")?, needed(claims, "exp")?);
        let clocks = "; is its issuer's clock right, and this collector's?";
        if expires.saturating_add(SKEW) <= now {
            return Err(format!("it expired {} s ago{clocks}", now.saturating_sub(expires)));
        }
        if issued.saturating_sub(SKEW) > now {
            return Err(format!("it was issued {} s in the future{clocks}", issued.saturating_sub(now)));
        }
        if issued.saturating_add(AGE_MAX + SKEW) <= now {
            return Err(format!("it was issued {} s ago, at most {AGE_MAX} are accepted{clocks}", now - issued));
        }
        if let Some(from) = time(claims, "nbf")?.filter(|from| from.saturating_sub(SKEW) > now) {
            return Err(format!("it is valid in {} s only (`nbf`){clocks}", from.saturating_sub(now)));
        }
        Ok((issued, expires))
    }

    /// In lower case: nobody is two people by the spelling of a name.
    fn name(&self, claims: &Value) -> Result<String, String> {
        let claim = &self.config.name_claim;
        let name = text(claims, claim)?.to_ascii_lowercase();
        if claim == "email" && claims.get("email_verified") != Some(&Value::Bool(true)) {
            return Err("the issuer has not verified the address (`email_verified`)".to_owned());
        }
        if self.config.domains.is_empty() {
            return Ok(name);
        }
        let (person, domain) = name.rsplit_once('@').unwrap_or((&name, ""));
        if !self.config.domains.iter().any(|accepted| accepted == domain) {
            let accepted = self.config.domains.join(", ");
            return Err(format!("{:?} is not of an accepted domain ({accepted})", shown(&name)));
        }
        Ok(if self.config.strip_domain { person.to_owned() } else { name.clone() })
    }

    /// By the first rule that fits.
    fn role(&self, claims: &Value, name: &str) -> Result<Role, String> {
        let found = self.config.allow.iter().find(|allow| allow.fits(claims));
        found.map(|allow| allow.role).ok_or_else(|| {
            let of: Vec<&str> = self.config.allow.iter().filter_map(|a| a.claim.as_deref()).collect();
            format!("{:?} may not log in here: no `oidc.allow` fits its claims ({})", shown(name), of.join(", "))
        })
    }
}

impl Allow {
    /// Whether the claim has one of the values; a list has it if one of its items does.
    fn fits(&self, claims: &Value) -> bool {
        let Some(claim) = &self.claim else { return true };
        let is_one = |value: &Value| value.as_str().is_some_and(|text| self.values.iter().any(|v| v == text));
        match claims.get(claim) {
            Some(Value::Array(all)) => all.iter().any(is_one),
            Some(one) => is_one(one),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::config::tests::config;
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn claims() -> Value {
        json!({"iss": "https://id.example/work", "aud": "guard", "sub": "s-1", "nonce": "n", "iat": NOW, "exp": NOW + 300,
            "preferred_username": "Alice", "groups": ["staff", "guard-reviewers"]})
    }

    fn judged(more: &str, change: impl FnOnce(&mut Value)) -> Result<Person, String> {
        let (mut claims, config) = (claims(), config(more).expect("a configuration"));
        change(&mut claims);
        Expected { config: &config, nonce: "n", now: NOW }.person(&claims)
    }

    #[test]
    fn a_token_names_a_person_with_the_role_of_the_first_rule_that_fits() {
        let person = judged("", |_| {}).expect("accepted");
        assert_eq!((person.caller.name.as_str(), person.caller.role), ("alice", Role::Reviewer));
        assert_eq!((person.subject.as_str(), person.expires), ("s-1", NOW + 300));
        let person = judged("", |c| c["groups"] = json!("guard-viewers")).expect("accepted");
        assert_eq!(person.caller.role, Role::Viewer);
        let person = judged("", |c| c["aud"] = json!(["guard"])).expect("accepted");
        assert_eq!(person.caller.name, "alice");
        judged("", |c| (c["aud"], c["azp"]) = (json!(["other", "guard"]), json!("guard"))).expect("accepted");
    }

    #[test]
    fn every_claim_is_held_to_what_this_login_expects() {
        type Change = fn(&mut Value);
        let wrong: [(Change, &str); 21] = [
            (|c| c["iss"] = json!("https://id.example/other"), "its issuer is"),
            (|c| c["iss"] = json!("https://id.example/work/"), "its issuer is"),
            (|c| c["aud"] = json!("another"), "another client"),
            (|c| c["aud"] = json!(["a", "b"]), "another client"),
            (|c| c["aud"] = json!(["guard", "b"]), "`azp`"),
            (|c| c["azp"] = json!("b"), "`azp`"),
            (|c| c["aud"] = Value::Null, "another client"),
            (|c| c["nonce"] = json!("m"), "another login"),
            (|c| c["nonce"] = json!(7), "`nonce` is no text"),
            (|c| drop(c.as_object_mut().map(|c| c.remove("nonce"))), "no claim `nonce`"),
            (|c| c["exp"] = json!(NOW - SKEW), "expired 60 s ago"),
            (|c| c["exp"] = json!("soon"), "no point in time"),
            (|c| drop(c.as_object_mut().map(|c| c.remove("exp"))), "no claim `exp`"),
            (|c| c["iat"] = json!(NOW + SKEW + 1), "in the future"),
            (|c| c["iat"] = json!(NOW - AGE_MAX - SKEW), "360 s ago"),
            (|c| c["nbf"] = json!(NOW + SKEW + 1), "`nbf`"),
            (|c| c["sub"] = json!(""), "`sub`"),
            (|c| c["groups"] = json!(["Guard-Reviewers", "staff"]), "may not log in here"),
            (|c| c["groups"] = json!({"guard-reviewers": true}), "may not log in here"),
            (|c| c["preferred_username"] = json!("alice/../admin"), "accepted are 1 to 64 letters"),
            (|c| c["preferred_username"] = json!("аlice"), "accepted are 1 to 64 letters"),
        ];
        for (number, (change, words)) in wrong.into_iter().enumerate() {
            let error = judged("", change).err().unwrap_or_else(|| panic!("{number}: accepted"));
            assert!(error.contains(words), "{number}: {error}");
        }
        judged("", |c| (c["exp"], c["iat"]) = (json!(NOW - SKEW + 1), json!(NOW + SKEW))).expect("inside the skew");
        judged("", |c| c["iat"] = json!((NOW as f64) + 0.5)).expect("a fraction");
    }

    #[test]
    fn addresses_count_when_they_are_verified_and_of_an_accepted_domain() {
        let mail = "name_claim = \"email\"\ndomains = [\"example.org\"]";
        let with = |address: &str, verified: Value| {
            let address = address.to_owned();
            move |c: &mut Value| (c["email"], c["email_verified"]) = (json!(address), verified)
        };
        let person = judged(mail, with("Alice@Example.org", json!(true))).expect("accepted");
        assert_eq!(person.caller.name, "alice@example.org");
        let stripped = format!("{mail}\nstrip_domain = true");
        assert_eq!(judged(&stripped, with("alice@example.org", json!(true))).expect("accepted").caller.name, "alice");
        for (address, verified) in [
            ("alice@example.org", json!(false)),
            ("alice@example.org", json!("true")),
            ("alice@evil.example", json!(true)),
            ("alice@example.org@evil.example", json!(true)),
            ("alice", json!(true)),
        ] {
            judged(mail, with(address, verified)).expect_err(address);
        }
        let error = judged(&stripped, with("a@b@example.org", json!(true))).map(|p| p.caller.name);
        assert_eq!(error.as_deref(), Ok("a@b"), "it stays what it is");
    }
}
