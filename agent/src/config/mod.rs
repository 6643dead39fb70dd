//! The agent's configuration: strict TOML, one file per section.
