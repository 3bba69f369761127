//! Signed tokens (JWS, compact form) and the issuer's keys (JWK set).
//!
//! It must not take a token's word for how it is signed: the algorithms are those of a list, each belongs to one kind of key, and
//! what needs no key or a shared one (`none`, HMAC) is not among them. Nothing of a token is believed before its signature is.
//! Bounded: the token's length, the number of keys. Fails: a text that says what is wrong, without the token.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

/// Longest token.
pub const TOKEN_MAX: usize = 32 << 10;
/// Most keys of an issuer.
pub const KEYS_MAX: usize = 100;
/// Characters of an issuer's or a token's words that are passed on.
const SHOWN: usize = 100;

/// How a token may be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("RS256", Algorithm::Rs256),
    ("RS384", Algorithm::Rs384),
    ("RS512", Algorithm::Rs512),
    ("PS256", Algorithm::Ps256),
    ("PS384", Algorithm::Ps384),
    ("PS512", Algorithm::Ps512),
    ("ES256", Algorithm::Es256),
    ("ES384", Algorithm::Es384),
    ("EdDSA", Algorithm::EdDsa),
];

/// A public key.
#[derive(Debug, PartialEq, Eq)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// The only algorithm that it is for, if it says so.
    algorithm: Option<String>,
    material: Material,
}

/// An issuer's keys.
#[derive(Debug, Default)]
pub struct Keys(Vec<Key>);

#[derive(Deserialize)]
struct RawKeys {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// Why a token is not believed.
#[derive(Debug, PartialEq, Eq)]
pub enum Doubt {
    /// None of these keys is the one that it names: the issuer may have a new one.
    UnknownKey(String),
    /// It is not what it should be.
    Wrong(String),
}

/// A token that is well formed, and nothing more yet.
pub struct Token<'a> {
    name: &'static str,
    algorithm: Algorithm,
    key_id: Option<String>,
    signed: &'a str,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

/// A text of others, short and without what a terminal would act on.
pub fn shown(text: &str) -> String {
    text.chars().take(SHOWN).map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()
}

/// A big-endian number without zeros in front.
fn number(text: Option<String>) -> Option<Vec<u8>> {
    let bytes = decoded(&text?)?;
    let start = bytes.iter().position(|b| *b != 0)?;
    bytes.get(start..).map(<[u8]>::to_vec)
}

// === impl Algorithm ===

impl Algorithm {
    fn fits(self, material: &Material) -> bool {
        match self {
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512 => {
                matches!(material, Material::Rsa { .. })
            }
            Self::Es256 => matches!(material, Material::P256(_)),
            Self::Es384 => matches!(material, Material::P384(_)),
            Self::EdDsa => matches!(material, Material::Ed25519(_)),
        }
    }

    /// For RSA keys of 2048 bits and more.
    fn rsa(self) -> Option<&'static RsaParameters> {
        match self {
            Self::Rs256 => Some(&RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Some(&RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Some(&RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Some(&RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Some(&RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Some(&RSA_PSS_2048_8192_SHA512),
            Self::Es256 | Self::Es384 | Self::EdDsa => None,
        }
    }
}

// === impl Key ===

impl Key {
    /// Of one entry; `None` if it is not for verifying signatures, or of a kind that nothing here uses.
    fn read(value: Value) -> Option<Self> {
        let raw: RawKey = serde_json::from_value(value).ok()?;
        if raw.purpose.is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let point = |x: Option<String>, y: Option<String>, length: usize| {
            let (x, y) = (decoded(&x?)?, decoded(&y?)?);
            (x.len() == length && y.len() == length).then(|| [&[4], x.as_slice(), y.as_slice()].concat())
        };
        let material = match (raw.kty.as_str(), raw.crv.as_deref()) {
            ("RSA", _) => Material::Rsa { n: number(raw.n)?, e: number(raw.e)? },
            ("EC", Some("P-256")) => Material::P256(point(raw.x, raw.y, 32)?),
            ("EC", Some("P-384")) => Material::P384(point(raw.x, raw.y, 48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(decoded(&raw.x?)?),
            _ => return None,
        };
        Some(Self { id: raw.kid, algorithm: raw.alg, material })
    }

    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let plain = |with: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(with, key).verify(message, signature).is_ok()
        };
        match (&self.material, algorithm.rsa()) {
            (Material::Rsa { n, e }, Some(with)) => {
                RsaPublicKeyComponents { n, e }.verify(with, message, signature).is_ok()
            }
            (Material::P256(key), None) => plain(&ECDSA_P256_SHA256_FIXED, key),
            (Material::P384(key), None) => plain(&ECDSA_P384_SHA384_FIXED, key),
            (Material::Ed25519(key), None) => plain(&ED25519, key),
            (Material::Rsa { .. }, None) | (Material::P256(_) | Material::P384(_) | Material::Ed25519(_), Some(_)) => {
                false
            }
        }
    }
}

// === impl Keys ===

impl Keys {
    /// Reads a JWK set. Keys that are not for signatures, or of unknown kinds, are left out.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let raw: RawKeys = serde_json::from_slice(bytes).map_err(|_| "it is no JWK set".to_owned())?;
        if raw.keys.len() > KEYS_MAX {
            return Err(format!("it holds {} keys; at most {KEYS_MAX} are accepted", raw.keys.len()));
        }
        Ok(Self(raw.keys.into_iter().filter_map(Key::read).collect()))
    }
}

// === impl Token ===

impl<'a> Token<'a> {
    /// Takes it apart.
    pub fn parse(text: &'a str) -> Result<Self, String> {
        if text.len() > TOKEN_MAX {
            return Err(format!("it is {} bytes long; at most {TOKEN_MAX} are accepted", text.len()));
        }
        let odd = || "it is no signed token (JWS, compact form)".to_owned();
        let (signed, signature) = text.rsplit_once('.').ok_or_else(odd)?;
        let (header, payload) = signed.split_once('.').ok_or_else(odd)?;
        let (header, payload) = (decoded(header).ok_or_else(odd)?, decoded(payload).ok_or_else(odd)?);
        let signature = decoded(signature).ok_or_else(odd)?;
        let header: Header = serde_json::from_slice(&header).map_err(|_| odd())?;
        if header.crit.is_some() {
            return Err("it names extensions that must be understood (`crit`), and none is".to_owned());
        }
        let found = ALGORITHMS.iter().find(|(name, _)| *name == header.alg);
        let (name, algorithm) = *found.ok_or_else(|| {
            let accepted: Vec<&str> = ALGORITHMS.iter().map(|(name, _)| *name).collect();
            format!("it is signed by {:?}; accepted are {}", shown(&header.alg), accepted.join(", "))
        })?;
        Ok(Self { name, algorithm, key_id: header.kid, signed, payload, signature })
    }

    /// What it says, if one of the keys has signed it.
    pub fn verified(&self, keys: &Keys) -> Result<Value, Doubt> {
        let may = |key: &&Key| {
            self.algorithm.fits(&key.material)
                && key.algorithm.as_deref().is_none_or(|only| only == self.name)
                && (self.key_id.is_none() || key.id == self.key_id)
        };
        let found: Vec<&Key> = keys.0.iter().filter(may).collect();
        if found.is_empty() {
            let which = self.key_id.as_deref().map_or_else(String::new, |id| format!(" {:?}", shown(id)));
            return Err(Doubt::UnknownKey(format!("its key{which} for {} is not among the issuer's", self.name)));
        }
        if self.key_id.is_none() && found.len() > 1 {
            return Err(Doubt::Wrong("it does not say which of the issuer's keys signed it".to_owned()));
        }
        if !found.iter().any(|key| key.verifies(self.algorithm, self.signed.as_bytes(), &self.signature)) {
            return Err(Doubt::Wrong("its signature is not the issuer's".to_owned()));
        }
        serde_json::from_slice(&self.payload).map_err(|_| Doubt::Wrong("it holds no JSON".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8037, appendix A: key and token.
    const ED_KEY: &str = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    const ED_TOKEN: &str = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    /// RFC 7515, appendices A.2 and A.3: keys and tokens.
    const RSA_KEY: &str = r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#;
    const RSA_TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    const EC_KEY: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
    const EC_TOKEN: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

    fn keys(of: &[&str]) -> Keys {
        Keys::parse(format!("{{\"keys\":[{}]}}", of.join(",")).as_bytes()).expect("a set")
    }

    #[test]
    fn tokens_of_the_standards_are_verified() {
        let all = keys(&[ED_KEY, RSA_KEY, EC_KEY]);
        for token in [RSA_TOKEN, EC_TOKEN] {
            let said = Token::parse(token).expect("well formed").verified(&all).expect("signed");
            assert_eq!(said["iss"], "joe");
        }
        let no_json = Token::parse(ED_TOKEN).expect("well formed").verified(&all);
        assert_eq!(no_json, Err(Doubt::Wrong("it holds no JSON".to_owned())), "signed, but no claims");
    }

    #[test]
    fn a_token_that_was_changed_is_not() {
        let all = keys(&[ED_KEY, RSA_KEY, EC_KEY]);
        for token in [RSA_TOKEN, EC_TOKEN, ED_TOKEN] {
            let (head, rest) = token.split_once('.').expect("a dot");
            let (body, sign) = rest.split_once('.').expect("a dot");
            let other = format!("{head}.{}.{sign}", BASE64_URL_SAFE_NO_PAD.encode("{\"iss\":\"eve\"}"));
            let error = Token::parse(&other).expect("well formed").verified(&all).expect_err("refused");
            assert!(matches!(&error, Doubt::Wrong(why) if why.contains("signature")), "{error:?}");
            for cut in [format!("{head}.{body}."), format!("{head}.{body}.AAAA")] {
                Token::parse(&cut).expect("well formed").verified(&all).expect_err("refused");
            }
        }
    }

    #[test]
    fn what_is_not_signed_by_a_key_of_the_issuer_is_no_token() {
        let made = |header: &str| format!("{}.e30.AAAA", BASE64_URL_SAFE_NO_PAD.encode(header));
        for (header, words) in [
            (r#"{"alg":"none"}"#, "\"none\""),
            (r#"{"alg":"HS256"}"#, "\"HS256\""),
            (r#"{"alg":"hs256"}"#, "accepted are RS256"),
            (r#"{"alg":"RS256","crit":["exp"]}"#, "crit"),
            (r#"{"kid":"a"}"#, "no signed token"),
            ("x", "no signed token"),
        ] {
            let error = Token::parse(&made(header)).err().expect(header);
            assert!(error.contains(words), "{header}: {error}");
        }
        assert!(Token::parse(&"a".repeat(TOKEN_MAX + 1)).err().expect("long").contains("at most"));
        for odd in ["", ".", "..", "a.b", "e30.e30", "e30.e30.=="] {
            assert!(Token::parse(odd).is_err(), "{odd}");
        }
        // A key of another kind, or for another algorithm, or with another name, is none.
        let rsa = Token::parse(RSA_TOKEN).expect("well formed");
        for other in
            [EC_KEY.to_owned(), RSA_KEY.replace("{", "{\"alg\":\"RS512\","), RSA_KEY.replace("{", "{\"use\":\"enc\",")]
        {
            assert!(matches!(rsa.verified(&keys(&[&other])), Err(Doubt::UnknownKey(_))), "{other}");
        }
        let two = keys(&[RSA_KEY, RSA_KEY]);
        assert!(matches!(rsa.verified(&two), Err(Doubt::Wrong(why)) if why.contains("which of")));
    }

    #[test]
    fn keys_are_bounded_and_strange_ones_left_out() {
        let strange = r#"{"kty":"oct","k":"AAAA"},{"kty":"EC","crv":"P-521","x":"AA","y":"AA"},{"kty":"RSA"},7"#;
        assert!(keys(&[strange]).0.is_empty());
        let many = vec![EC_KEY; KEYS_MAX + 1].join(",");
        let error = Keys::parse(format!("{{\"keys\":[{many}]}}").as_bytes()).expect_err("refused");
        assert!(error.contains("101 keys"), "{error}");
    }
}
