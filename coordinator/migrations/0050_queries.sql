-- What lists and the overview read, so that none of them reads the history. Kept up to date by triggers
-- (0050_queries.sqlite.sql, 0050_queries.postgres.sql), whoever changes the rows that they follow from.

-- The labels of `agents.labels`, one row each: for selectors.
CREATE TABLE agent_labels (
    agent_id TEXT NOT NULL REFERENCES agents (id),
    key      TEXT NOT NULL,
    value    TEXT NOT NULL,
    PRIMARY KEY (agent_id, key)
);
CREATE INDEX agent_labels_key ON agent_labels (key, value, agent_id);

-- What a series has in the bucket.
CREATE TABLE series_totals (
    series_id      TEXT PRIMARY KEY NOT NULL REFERENCES series (id),
    agent_id       TEXT NOT NULL REFERENCES agents (id),
    packs          BIGINT NOT NULL DEFAULT 0,   -- objects that take space: neither on their way, nor gone
    stored_bytes   BIGINT NOT NULL DEFAULT 0,   -- what they take
    backups        BIGINT NOT NULL DEFAULT 0,   -- committed ones
    raw_bytes      BIGINT NOT NULL DEFAULT 0,   -- what these restore to
    last_backup_id TEXT,                        -- the committed one with the highest sequence number
    last_backup_ms BIGINT                       -- when that was begun
);
CREATE INDEX series_totals_agent ON series_totals (agent_id);
INSERT INTO series_totals (series_id, agent_id) SELECT id, agent_id FROM series;
UPDATE series_totals SET
    packs = (SELECT COUNT(*) FROM packs p WHERE p.series_id = series_totals.series_id
        AND p.state NOT IN ('signed', 'missing', 'deleted')),
    stored_bytes = (SELECT CAST(COALESCE(SUM(p.size), 0) AS BIGINT) FROM packs p WHERE p.series_id = series_totals.series_id
        AND p.state NOT IN ('signed', 'missing', 'deleted')),
    backups = (SELECT COUNT(*) FROM backups b WHERE b.series_id = series_totals.series_id AND b.state = 'committed'),
    raw_bytes = (SELECT CAST(COALESCE(SUM(b.raw_bytes), 0) AS BIGINT) FROM backups b
        WHERE b.series_id = series_totals.series_id AND b.state = 'committed'),
    last_backup_id = (SELECT b.id FROM backups b WHERE b.series_id = series_totals.series_id AND b.state = 'committed'
        ORDER BY b.sequence DESC LIMIT 1),
    last_backup_ms = (SELECT b.created_ms FROM backups b WHERE b.series_id = series_totals.series_id
        AND b.state = 'committed' ORDER BY b.sequence DESC LIMIT 1);

-- One index for each order in which lists are asked for, and each thing they are narrowed to.
CREATE INDEX agents_state ON agents (state);
CREATE INDEX runs_agent ON runs (agent_id, created_ms, id);
CREATE INDEX runs_state ON runs (state, created_ms, id);
CREATE INDEX backups_agent ON backups (agent_id, committed_ms, id) WHERE state = 'committed';
CREATE INDEX backups_series ON backups (series_id, committed_ms, id) WHERE state = 'committed';
CREATE INDEX backups_raw ON backups (raw_bytes, id) WHERE state = 'committed';
CREATE INDEX backups_stored ON backups (new_stored_bytes, id) WHERE state = 'committed';
CREATE INDEX audit_events_order ON audit_events (time_ms, seq);
CREATE INDEX audit_events_actor ON audit_events (actor, time_ms, seq);
CREATE INDEX audit_events_action ON audit_events (action, time_ms, seq);
DROP INDEX audit_events_time;
