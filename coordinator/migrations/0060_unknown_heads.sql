-- Manifests that hosts remember as the newest of their series and that this database does not know: the sign of a database
-- that was restored from an older backup. A row goes when the host and the database agree again.
CREATE TABLE unknown_heads (
    series_id       TEXT PRIMARY KEY NOT NULL REFERENCES series (id),
    agent_id        TEXT NOT NULL REFERENCES agents (id),
    sequence        BIGINT NOT NULL,
    manifest_sha256 BLOB NOT NULL,
    seen_ms         BIGINT NOT NULL
);
