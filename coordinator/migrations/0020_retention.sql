-- Which backups stay, and what may be deleted from the bucket (docs/format.md, Deleting).

ALTER TABLE packs ADD COLUMN raw_len BIGINT NOT NULL DEFAULT 0;         -- raw bytes in it; 0 where its agent did not say
ALTER TABLE packs ADD COLUMN referred BOOLEAN NOT NULL DEFAULT FALSE;   -- a backup that was prepared named it
ALTER TABLE packs ADD COLUMN doomed_ms BIGINT;                          -- since when nothing refers to it
ALTER TABLE packs ADD COLUMN locked_until_ms BIGINT;                    -- the store refuses to delete it until then
-- What keeps a backup from being restored whole: few rows, asked for often.
CREATE INDEX packs_lost ON packs (series_id, ordinal) WHERE state IN ('missing', 'damaged');
CREATE INDEX packs_deleting ON packs (series_id) WHERE state = 'deleting';

ALTER TABLE backups ADD COLUMN used BLOB;                               -- raw bytes used of each pack of refs, u32 LE each
ALTER TABLE backups ADD COLUMN locked_until_ms BIGINT;                  -- the store refuses to delete its manifest until then
ALTER TABLE backups ADD COLUMN lost_packs BIGINT NOT NULL DEFAULT 0;    -- of its packs, those that are missing or damaged
ALTER TABLE backups ADD COLUMN manifest_lost BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE backups ADD COLUMN verified_ms BIGINT;                      -- all of it was read back and hashed right
ALTER TABLE backups ADD COLUMN held_ms BIGINT;
ALTER TABLE backups ADD COLUMN held_by TEXT NOT NULL DEFAULT '';
ALTER TABLE backups ADD COLUMN held_reason TEXT NOT NULL DEFAULT '';
ALTER TABLE backups ADD COLUMN expired_ms BIGINT;
ALTER TABLE backups ADD COLUMN expired_by TEXT NOT NULL DEFAULT '';
ALTER TABLE backups ADD COLUMN expired_reason TEXT NOT NULL DEFAULT '';
ALTER TABLE backups ADD COLUMN undeleted_ms BIGINT;
CREATE INDEX backups_going ON backups (series_id) WHERE state IN ('expired', 'deleting');
-- On the columns themselves: SQLite else counts through another partial index, and reads every backup.
CREATE INDEX backups_lost ON backups (lost_packs) WHERE state = 'committed' AND lost_packs > 0;
CREATE INDEX backups_manifest_lost ON backups (manifest_lost, lost_packs) WHERE state = 'committed' AND manifest_lost = TRUE;

-- How far retention and collection are with a series.
CREATE TABLE series_retention (
    series_id    TEXT PRIMARY KEY NOT NULL REFERENCES series (id),
    collected_ms BIGINT NOT NULL,          -- when it was last looked at
    halted_ms    BIGINT,                   -- nothing is deleted since then,
    halted_why   TEXT NOT NULL             -- because of this
);
CREATE INDEX series_retention_due ON series_retention (collected_ms);

-- What is under way on a series that must not run beside something else (src/retention/beside.rs).
CREATE TABLE series_operations (
    series_id  TEXT NOT NULL REFERENCES series (id),
    operation  TEXT NOT NULL,
    holder     TEXT NOT NULL,              -- the process; it may take its own again
    expires_ms BIGINT NOT NULL,
    PRIMARY KEY (series_id, operation)
);
