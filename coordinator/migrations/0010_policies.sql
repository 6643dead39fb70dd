-- Policies, what is in force for each source, pauses, and what ties runs to them.

CREATE TABLE policies (
    id             TEXT PRIMARY KEY NOT NULL,
    name           TEXT NOT NULL,
    version        BIGINT NOT NULL,       -- in force; 0: none yet
    canary_version BIGINT NOT NULL,       -- tried out on some hosts first; 0: none
    canary         TEXT NOT NULL,         -- the selector of these hosts
    claims         BIGINT NOT NULL,       -- counted up to lock the row
    created_ms     BIGINT NOT NULL,
    deleted_ms     BIGINT
);
CREATE UNIQUE INDEX policies_name ON policies (name) WHERE deleted_ms IS NULL;

-- What a policy said at any time; never changed.
CREATE TABLE policy_versions (
    policy_id  TEXT NOT NULL REFERENCES policies (id),
    version    BIGINT NOT NULL,
    document   TEXT NOT NULL,             -- TOML, as it was given
    action     TEXT NOT NULL,             -- how it came about, for people
    created_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (policy_id, version)
);

-- What is in force for a source, and what its schedule waits for. Made anew from policies, labels and sources at any time;
-- what cannot be made anew is when a retention was shortened, and what is owed.
CREATE TABLE source_policies (
    series_id         TEXT PRIMARY KEY NOT NULL REFERENCES series (id),
    agent_id          TEXT NOT NULL REFERENCES agents (id),
    policy_id         TEXT REFERENCES policies (id),
    policy_version    BIGINT NOT NULL,
    timezone          TEXT NOT NULL,      -- in which its schedule is meant
    assigned_ms       BIGINT NOT NULL,    -- since when it is under a policy
    promise_ms        BIGINT NOT NULL,    -- the newest good backup is never older; 0: nothing is promised
    overdue_since_ms  BIGINT,             -- since when that was seen to be broken
    next_due_ms       BIGINT,             -- the first instant that is not dealt with
    owed_ms           BIGINT,             -- the newest instant that was missed, while its host is away
    owed_deadline_ms  BIGINT,
    owed_run_id       TEXT,               -- the row that later instants are counted on
    retention         TEXT NOT NULL,      -- JSON: the rules in force,
    retention_next    TEXT NOT NULL,      -- those that replace them (empty: none),
    retention_next_ms BIGINT              -- from then on
);
CREATE INDEX source_policies_due ON source_policies (next_due_ms) WHERE next_due_ms IS NOT NULL;
CREATE INDEX source_policies_owed ON source_policies (owed_ms) WHERE owed_ms IS NOT NULL;
CREATE INDEX source_policies_agent ON source_policies (agent_id);

CREATE TABLE pauses (
    id         TEXT PRIMARY KEY NOT NULL,
    selector   TEXT NOT NULL,             -- of hosts; empty: all
    reason     TEXT NOT NULL,
    created_ms BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    until_ms   BIGINT,                    -- NULL: until it is ended
    ended_ms   BIGINT
);
CREATE INDEX pauses_open ON pauses (created_ms) WHERE ended_ms IS NULL;

-- One row per site (the label `store`), locked while one of its limited runs is started.
CREATE TABLE sites (
    name   TEXT PRIMARY KEY NOT NULL,
    claims BIGINT NOT NULL
);

ALTER TABLE runs ADD COLUMN site TEXT NOT NULL DEFAULT '';
-- What follows is NULL, or of no meaning, for runs that an admin asked for.
ALTER TABLE runs ADD COLUMN policy_id TEXT REFERENCES policies (id);
ALTER TABLE runs ADD COLUMN policy_version BIGINT NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN occasion TEXT NOT NULL DEFAULT '';            -- schedule | catch-up
ALTER TABLE runs ADD COLUMN instant_ms BIGINT;                           -- when the policy was due
ALTER TABLE runs ADD COLUMN deadline_ms BIGINT;                          -- not started by then: missed
ALTER TABLE runs ADD COLUMN stop_ms BIGINT;                              -- under way then: stopped
ALTER TABLE runs ADD COLUMN collapsed BIGINT NOT NULL DEFAULT 0;         -- instants that it stands for beside its own
ALTER TABLE runs ADD COLUMN max_attempts BIGINT NOT NULL DEFAULT 3;
-- An instant of a policy gives a source one run, and one more that makes up for it.
CREATE UNIQUE INDEX runs_instant ON runs (policy_id, series_id, instant_ms, occasion) WHERE policy_id IS NOT NULL;
CREATE INDEX runs_scheduled ON runs (due_ms) WHERE state = 'scheduled';
CREATE INDEX runs_deadline ON runs (deadline_ms) WHERE ended_ms IS NULL AND deadline_ms IS NOT NULL;
CREATE INDEX runs_series_open ON runs (series_id) WHERE ended_ms IS NULL;
CREATE INDEX backups_agent_committed ON backups (agent_id, committed_ms) WHERE state = 'committed';
