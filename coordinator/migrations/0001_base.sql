-- Identity, sessions, runs and the audit. Ids are UUIDs as lower-case text, times Unix milliseconds, hashes and keys
-- bytes. One text for SQLite and PostgreSQL: src/store/migrations.rs says which words become what.

-- One row per fact about the installation: repository_id, generation, trust_domain.
CREATE TABLE installation (
    name  TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);

CREATE TABLE audit_events (
    seq            COUNTER,               -- the order of inserts; of commits too where one writes at a time (SQLite)
    id             TEXT NOT NULL UNIQUE,
    time_ms        BIGINT NOT NULL,
    actor          TEXT NOT NULL,
    source_address TEXT NOT NULL,
    request_id     TEXT NOT NULL,
    action         TEXT NOT NULL,
    entity         TEXT NOT NULL,
    outcome        TEXT NOT NULL CHECK (outcome IN ('intended', 'done', 'failed', 'refused')),
    details        TEXT NOT NULL
);
CREATE INDEX audit_events_time ON audit_events (time_ms);

CREATE TABLE tokens (
    id            TEXT PRIMARY KEY NOT NULL,
    secret_sha256 BLOB NOT NULL,
    labels        TEXT NOT NULL,
    scope         TEXT NOT NULL,
    name          TEXT NOT NULL,          -- empty: the host names itself
    created_ms    BIGINT NOT NULL,
    expires_ms    BIGINT NOT NULL,
    uses          BIGINT NOT NULL,
    used          BIGINT NOT NULL,
    revoked       BOOLEAN NOT NULL,
    created_by    TEXT NOT NULL
);

CREATE TABLE agents (
    id                     TEXT PRIMARY KEY NOT NULL,
    name                   TEXT NOT NULL UNIQUE,
    state                  TEXT NOT NULL,
    state_reason           TEXT NOT NULL,
    labels                 TEXT NOT NULL,
    scope                  TEXT NOT NULL,
    signing_key            BLOB NOT NULL,
    key_object             BLOB NOT NULL,  -- the agents/ object of the signing key in force
    tls_key_sha256         BLOB NOT NULL,  -- of the public key (SPKI) of the newest certificate
    token_id               TEXT NOT NULL REFERENCES tokens (id),
    version                TEXT NOT NULL,
    os                     TEXT NOT NULL,
    timezone               TEXT NOT NULL,
    address                TEXT NOT NULL,
    enrolled_ms            BIGINT NOT NULL,
    last_seen_ms           BIGINT NOT NULL,
    certificate_expires_ms BIGINT NOT NULL
);

-- A source over time. `fence` counts attempts: the epoch of the newest attempt on this series.
CREATE TABLE series (
    id         TEXT PRIMARY KEY NOT NULL,
    agent_id   TEXT NOT NULL REFERENCES agents (id),
    source     TEXT NOT NULL,
    scope      TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    fence      BIGINT NOT NULL
);

-- What a host says it has.
CREATE TABLE sources (
    agent_id   TEXT NOT NULL REFERENCES agents (id),
    name       TEXT NOT NULL,
    kind       TEXT NOT NULL,
    detail     TEXT NOT NULL,
    credential_origins TEXT NOT NULL,
    series_id  TEXT NOT NULL REFERENCES series (id),
    present    BOOLEAN NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (agent_id, name)
);
CREATE UNIQUE INDEX sources_series ON sources (series_id);

CREATE TABLE trust_policies (
    version   BIGINT PRIMARY KEY NOT NULL,
    sha256    BLOB NOT NULL,
    object    BLOB NOT NULL,
    stored_ms BIGINT NOT NULL,
    in_bucket BOOLEAN NOT NULL            -- from then on it is in force
);

CREATE TABLE runs (
    id           TEXT PRIMARY KEY NOT NULL,
    agent_id     TEXT NOT NULL REFERENCES agents (id),
    source       TEXT NOT NULL,
    series_id    TEXT NOT NULL REFERENCES series (id),
    state        TEXT NOT NULL,
    created_ms   BIGINT NOT NULL,
    due_ms       BIGINT NOT NULL,         -- not before; moves while in back-off
    started_ms   BIGINT,
    ended_ms     BIGINT,
    attempts     BIGINT NOT NULL,         -- made so far
    cancelled_by TEXT,                    -- who asked for the end of a run that is still active
    requested_by TEXT NOT NULL,
    trace_parent TEXT NOT NULL,
    backup_id    TEXT,
    error        TEXT NOT NULL
);
CREATE INDEX runs_created ON runs (created_ms, id);
CREATE INDEX runs_open ON runs (state, due_ms) WHERE ended_ms IS NULL;
CREATE INDEX runs_series ON runs (series_id, created_ms);

CREATE TABLE attempts (
    run_id           TEXT NOT NULL REFERENCES runs (id),
    number           BIGINT NOT NULL,
    agent_id         TEXT NOT NULL REFERENCES agents (id),
    series_id        TEXT NOT NULL REFERENCES series (id),
    state            TEXT NOT NULL,
    generation       BIGINT NOT NULL,
    epoch            BIGINT NOT NULL,
    lease_owner      TEXT NOT NULL,
    lease_expires_ms BIGINT NOT NULL,
    instance_id      TEXT,                -- the agent process that works on it
    backup_id        TEXT,                -- the one begun last
    started_ms       BIGINT NOT NULL,
    ended_ms         BIGINT,
    error            TEXT NOT NULL,
    stderr           TEXT NOT NULL,
    PRIMARY KEY (run_id, number)
);
-- One attempt at a time works on a series: the lease of the series.
CREATE UNIQUE INDEX attempts_series_open ON attempts (series_id) WHERE ended_ms IS NULL;
CREATE INDEX attempts_agent_open ON attempts (agent_id) WHERE ended_ms IS NULL;
