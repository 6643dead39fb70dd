//! Enrolment tokens: `slt_<id>_<secret>`, shown once, kept as a hash.

use std::collections::HashSet;
use std::str::FromStr;
use std::time::Duration;

use futures::FutureExt as _;
use sealift_common::id::Sha256;
use sealift_common::name::{Labels, Name};
use sealift_common::secret::Secret;

use super::agents::find;
use super::{Identities, IdentityError};
use crate::audit::{Action, Details, OpContext, Outcome};
use crate::store::agents;
use crate::store::tokens::{self, TokenRow};

/// Longest life of a token.
pub const MAX_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Most agents that one token enrols.
pub const MAX_USES: u32 = 10_000;
/// Longest scope, in bytes.
const MAX_SCOPE: usize = 63;

/// What a new token is to be.
#[derive(Debug, Clone)]
pub struct TokenTerms {
    /// For the agents it enrols.
    pub labels: Labels,
    /// How long it is good.
    pub life: Duration,
    /// How many agents it enrols.
    pub uses: u32,
    /// Which rule of the trust policy they fall under; may be empty.
    pub scope: String,
    /// What the agent will be called; only for one use.
    pub name: Option<Name>,
    /// The agent whose host is replaced; everything else stays as it is there.
    pub replaces: Option<String>,
}

impl TokenTerms {
    fn check(&self) -> Result<(), IdentityError> {
        let bad = |problem| Err(IdentityError::TokenTerms(problem));
        if self.life.is_zero() || self.life > MAX_LIFE {
            return bad("a token lives from one second to 30 days (--ttl)");
        }
        if !(1..=MAX_USES).contains(&self.uses) {
            return bad("a token has 1 to 10,000 uses (--uses)");
        }
        let more = self.uses > 1
            || self.name.is_some()
            || !self.scope.is_empty()
            || self.labels.iter().next().is_some();
        if self.replaces.is_some() && more {
            return bad(
                "a token that replaces a host enrols one, and its name, labels and scope stay as they are",
            );
        }
        if self.name.is_some() && self.uses > 1 {
            return bad("a token with a name enrols one host: names are unique");
        }
        if !self.scope.is_empty() && self.scope.parse::<Name>().is_err() || self.scope.len() > MAX_SCOPE {
            return bad("a scope is 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit");
        }
        Ok(())
    }
}

/// A token as a host presents it.
#[derive(Debug)]
pub struct Token {
    /// Its public part.
    pub id: String,
    secret: Secret<String>,
}

impl FromStr for Token {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let parts: Vec<&str> = text.trim().split('_').collect();
        let hexadecimal = |text: &str, len| text.len() == len && text.bytes().all(|c| c.is_ascii_hexdigit());
        match parts.as_slice() {
            ["slt", id, secret] if hexadecimal(id, 16) && hexadecimal(secret, 64) => {
                Ok(Self { id: (*id).to_owned(), secret: Secret::new((*secret).to_owned()) })
            }
            _ => Err(IdentityError::TokenMalformed),
        }
    }
}

impl Token {
    /// Whether this is the token of `row`, in a time that does not depend on how nearly.
    pub fn matches(&self, row: &TokenRow) -> bool {
        use subtle::ConstantTimeEq as _;
        let presented = Sha256::of(self.secret.expose().as_bytes());
        presented.as_bytes().ct_eq(row.secret_sha256.as_bytes()).into()
    }
}

impl Identities {
    /// Makes a token; its text is returned here and nowhere else, ever.
    ///
    /// # Errors
    /// [`IdentityError::TokenTerms`], or those of access and database.
    pub async fn create_token(
        &self,
        ctx: &OpContext,
        terms: TokenTerms,
    ) -> Result<(Secret<String>, TokenRow), IdentityError> {
        let (text, row) = self.new_token(ctx, &terms);
        let (row_ref, terms) = (&row, &terms);
        let entity = format!("token:{}", row.id);
        let row = ctx
            .perform(Action::TokenCreate, &entity, told(&row), move |tx, _| {
                async move {
                    terms.check()?;
                    let mut row = row_ref.clone();
                    if let Some(text) = &terms.replaces {
                        let agent = find(tx, text).await?;
                        row.replaces = Some(agent.id);
                        row.name = agent.name.to_string();
                        row.scope = agent.scope;
                    }
                    tokens::insert(tx, &row).await?;
                    let replaces = row.replaces.map(|agent| agent.to_string());
                    Ok::<_, IdentityError>((row, Details::none().with("replaces", replaces)))
                }
                .boxed()
            })
            .await?;
        Ok((text, row))
    }

    /// Makes one token for each host of a list, all or none: each is good for its own name and labels only, so that no host
    /// of a roll-out can take another's place.
    ///
    /// # Errors
    /// [`IdentityError::TokenTerms`], [`IdentityError::NameTaken`], or those of access and database.
    pub async fn create_tokens(
        &self,
        ctx: &OpContext,
        hosts: Vec<TokenTerms>,
    ) -> Result<Vec<(Secret<String>, TokenRow)>, IdentityError> {
        let made: Vec<_> = hosts.iter().map(|terms| self.new_token(ctx, terms)).collect();
        let (made_ref, hosts) = (&made, &hosts);
        let details = Details::none().with("hosts", made.len());
        ctx.perform(Action::TokenCreate, &"tokens", details, move |tx, _| {
            async move {
                if hosts.len() > MAX_USES as usize {
                    return Err(IdentityError::TokenTerms("a list has at most 10,000 hosts"));
                }
                let mut names = HashSet::new();
                for (terms, (_, row)) in hosts.iter().zip(made_ref) {
                    terms.check()?;
                    let taken = agents::by_name(tx, &row.name).await?.is_some();
                    if taken || !names.insert(row.name.as_str()) {
                        return Err(IdentityError::NameTaken { name: row.name.clone() });
                    }
                    tokens::insert(tx, row).await?;
                    let entity = format!("token:{}", row.id);
                    ctx.record(tx, Action::TokenCreate, &entity, Outcome::Done, told(row)).await?;
                }
                Ok(((), Details::none()))
            }
            .boxed()
        })
        .await?;
        Ok(made)
    }

    fn new_token(&self, ctx: &OpContext, terms: &TokenTerms) -> (Secret<String>, TokenRow) {
        let random = &self.core.random;
        let (id, secret) = (hex::encode(random.bytes::<8>()), Secret::new(hex::encode(random.bytes::<32>())));
        let text = Secret::new(format!("slt_{id}_{}", secret.expose()));
        let now = self.core.clock.now();
        let row = TokenRow {
            id,
            secret_sha256: Sha256::of(secret.expose().as_bytes()),
            labels: terms.labels.clone(),
            scope: terms.scope.clone(),
            name: terms.name.clone().map(String::from).unwrap_or_default(),
            created: now,
            expires: now.plus(terms.life),
            uses: terms.uses,
            used: 0,
            revoked: false,
            created_by: ctx.actor().to_string(),
            replaces: None,
        };
        (text, row)
    }

    /// Tokens by id, those after `after`.
    ///
    /// # Errors
    /// Those of access and database.
    pub async fn list_tokens(
        &self,
        ctx: &OpContext,
        after: &str,
        limit: u32,
    ) -> Result<Vec<TokenRow>, IdentityError> {
        ctx.authorize(Action::TokenList, &"tokens").await?;
        let mut conn = self.core.store.reader().await?;
        Ok(tokens::list(&mut conn, after, limit).await?)
    }

    /// Takes a token back. The agents that it enrolled stay.
    ///
    /// # Errors
    /// [`IdentityError::NoToken`], or those of access and database.
    pub async fn revoke_token(&self, ctx: &OpContext, id: &str) -> Result<TokenRow, IdentityError> {
        let entity = format!("token:{}", id.chars().take(64).collect::<String>());
        ctx.perform(Action::TokenRevoke, &entity, Details::none(), move |tx, _| {
            async move {
                let found = tokens::lock(tx, id).await?;
                let mut row = found.ok_or_else(|| IdentityError::NoToken(id.chars().take(64).collect()))?;
                row.revoked = true;
                tokens::update(tx, &row).await?;
                Ok((row, Details::none()))
            }
            .boxed()
        })
        .await
    }
}

/// What the audit says of a token; its secret is not among it.
fn told(row: &TokenRow) -> Details {
    Details::none()
        .with("uses", row.uses)
        .with("expires", row.expires.rfc3339())
        .with("labels", serde_json::json!(row.labels))
        .with("scope", row.scope.as_str())
        .with("name", row.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_tokens_parse() {
        let (id, secret) = ("0123456789abcdef", "a".repeat(64));
        let token: Token = format!(" slt_{id}_{secret}\n").parse().unwrap();
        assert_eq!(token.id, id);
        assert!(!format!("{token:?}").contains(&secret), "a token's secret must not be printed");
        for bad in [
            "",
            "slt__",
            "slt_0123456789abcdef",
            &format!("slt_{id}_{secret}0"),
            &format!("xyz_{id}_{secret}"),
        ] {
            assert!(matches!(bad.parse::<Token>(), Err(IdentityError::TokenMalformed)), "{bad}");
        }
    }
}
