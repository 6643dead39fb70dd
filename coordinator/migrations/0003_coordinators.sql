-- Several coordinators on one database: who there is, who leads, which agent is connected to which. Times are the
-- database's own.

-- What one coordinator at a time does. An epoch is never given twice.
CREATE TABLE leases (
    name       TEXT PRIMARY KEY NOT NULL,
    owner      TEXT NOT NULL,             -- the coordinator's process; empty: nobody
    epoch      BIGINT NOT NULL,           -- of the owner's term
    expires_ms BIGINT NOT NULL
);

-- One row per coordinator process that is alive.
CREATE TABLE coordinators (
    id         TEXT PRIMARY KEY NOT NULL,
    address    TEXT NOT NULL,             -- where agents and admins reach it, for people
    version    TEXT NOT NULL,
    started_ms BIGINT NOT NULL,
    seen_ms    BIGINT NOT NULL
);

-- The newest session of each agent. `epoch` counts them: the newest wins, wherever it is.
CREATE TABLE agent_sessions (
    agent_id       TEXT PRIMARY KEY NOT NULL REFERENCES agents (id),
    epoch          BIGINT NOT NULL,
    coordinator_id TEXT NOT NULL,         -- empty: it has ended
    changed_ms     BIGINT NOT NULL
);
CREATE INDEX agent_sessions_coordinator ON agent_sessions (coordinator_id);

-- What coordinators have to tell one another's agents; gone once it is taken.
CREATE TABLE coordinator_messages (
    seq            COUNTER,
    coordinator_id TEXT NOT NULL,
    body           TEXT NOT NULL,         -- JSON; never a secret
    sent_ms        BIGINT NOT NULL
);
CREATE INDEX coordinator_messages_to ON coordinator_messages (coordinator_id, seq);
