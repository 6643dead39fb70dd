//! Accounts, roles and grants, as the server itself words them.
//!
//! `mariadb-dump --system=users` fails as a whole over one account that the server ignores (a host name under
//! `skip-name-resolve`), and `mysqldump` has nothing like it. So the server is asked: `SHOW CREATE USER` and
//! `SHOW GRANTS` for every account in force.

use super::Server;
use crate::source::error::SourceError;

/// Accounts in force. How grantees are quoted differs between versions.
const ACCOUNTS: &str = "SELECT HEX(u.User), HEX(u.Host) FROM mysql.user u WHERE EXISTS \
     (SELECT 1 FROM information_schema.USER_PRIVILEGES p WHERE p.GRANTEE IN \
     (CONCAT('''', u.User, '''@''', u.Host, ''''), CONCAT(QUOTE(u.User), '@', QUOTE(u.Host)))) ORDER BY 1, 2";
/// MariaDB's roles are rows of `mysql.user` too; MySQL's are accounts like any other.
const ROLES: &str = "SELECT HEX(User) FROM mysql.user WHERE is_role = 'Y' ORDER BY 1";
/// How many accounts are asked about at once: what is asked is an argument, and those end at 128 KiB.
const AT_ONCE: usize = 100;

/// The accounts as SQL; `None` where this user may not read them. What exists on restore is left as it is.
pub async fn dump(server: &Server<'_>) -> Result<Option<String>, SourceError> {
    let accounts = match server.query::<2>(ACCOUNTS).await {
        Ok(accounts) => accounts,
        Err(SourceError::ToolFailed { stderr, .. }) if stderr.contains("denied") => return Ok(None),
        Err(error) => return Err(error),
    };
    let is_mariadb = server.version.contains("MariaDB");
    let roles: Vec<String> = if is_mariadb {
        server.query::<1>(ROLES).await?.into_iter().map(|[role]| identifier(&role)).collect()
    } else {
        Vec::new()
    };
    let users = accounts.iter().filter(|[_, host]| !(is_mariadb && host.is_empty()));
    let users: Vec<String> =
        users.map(|[user, host]| format!("{}@{}", identifier(user), identifier(host))).collect();

    let mut created = ask(server, "SHOW CREATE USER", &users).await?;
    // In MySQL an account may name its default role, which has to be there by then.
    created.sort_by_key(|statement| statement.contains(" DEFAULT ROLE "));
    let holders: Vec<String> = roles.iter().chain(&users).cloned().collect();
    let granted = ask(server, "SHOW GRANTS FOR", &holders).await?;
    // PUBLIC is everybody: always there where a server knows it, and never made.
    let made = roles.iter().filter(|role| role.as_str() != "`PUBLIC`");
    let statements = made
        .map(|role| format!("CREATE ROLE IF NOT EXISTS {role}"))
        .chain(
            created
                .iter()
                .map(|statement| statement.replacen("CREATE USER ", "CREATE USER IF NOT EXISTS ", 1)),
        )
        .chain(granted.iter().map(|statement| without_password(statement)));
    Ok(Some(statements.map(|statement| format!("{statement};\n")).collect()))
}

/// What the server answers to `question` about each of `subjects`, a statement a line.
async fn ask(server: &Server<'_>, question: &str, subjects: &[String]) -> Result<Vec<String>, SourceError> {
    // Hashes of newer plug-ins are bytes, which only their hexadecimal form brings through a text.
    let preamble = match server.version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
        Some(8..=9) if !server.version.contains("MariaDB") => {
            "SET SESSION print_identified_with_as_hex = ON; "
        }
        _ => "",
    };
    let mut statements = Vec::new();
    for some in subjects.chunks(AT_ONCE) {
        let questions: Vec<_> = some.iter().map(|subject| format!("{question} {subject}")).collect();
        let sql = format!("{preamble}{}", questions.join("; "));
        let answer =
            server.client().arg("--raw").arg("--execute").arg(sql).answer(server.env, server.cancel).await?;
        statements.extend(String::from_utf8_lossy(&answer).lines().map(str::to_owned));
    }
    Ok(statements)
}

fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A grant without the password that MariaDB repeats in it: it would overwrite that of an account which is there.
fn without_password(grant: &str) -> String {
    let Some(start) = find_outside_quotes(grant, 0, &[" IDENTIFIED "]) else { return grant.to_owned() };
    let end = find_outside_quotes(grant, start + 1, &[" REQUIRE ", " WITH "]).unwrap_or(grant.len());
    format!("{}{}", grant.get(..start).unwrap_or_default(), grant.get(end..).unwrap_or_default())
}

/// Where the first of `words` stands at or after `from`, outside of quotes.
fn find_outside_quotes(text: &str, from: usize, words: &[&str]) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('\'' | '"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '\'' | '"' | '`') => quote = Some(c),
            None if at >= from && words.iter().any(|word| text[at..].starts_with(word)) => return Some(at),
            None => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_lose_their_passwords_and_nothing_else() {
        for (grant, kept) in [
            ("GRANT SELECT ON `a`.* TO `u`@`%`", "GRANT SELECT ON `a`.* TO `u`@`%`"),
            ("GRANT USAGE ON *.* TO `u`@`%` IDENTIFIED BY PASSWORD '*AB'", "GRANT USAGE ON *.* TO `u`@`%`"),
            (
                "GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` IDENTIFIED VIA mysql_native_password USING 'x WITH y' \
                 OR unix_socket REQUIRE SSL WITH GRANT OPTION",
                "GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` REQUIRE SSL WITH GRANT OPTION",
            ),
            ("GRANT USAGE ON *.* TO ` IDENTIFIED `@`%`", "GRANT USAGE ON *.* TO ` IDENTIFIED `@`%`"),
        ] {
            assert_eq!(without_password(grant), kept);
        }
    }
}
