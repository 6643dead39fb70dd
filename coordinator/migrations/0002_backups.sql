-- Packs, backups and restores (docs/format.md, Writing and Deleting).

-- One row per pack that was ever signed for. `ordinal` is its position in the bitmaps of its series' backups.
CREATE TABLE packs (
    series_id      TEXT NOT NULL REFERENCES series (id),
    ordinal        BIGINT NOT NULL,
    sha256         BLOB NOT NULL,
    pack_id        BLOB NOT NULL,
    origin_backup  BLOB NOT NULL,         -- the backup under whose data key it is sealed
    epoch_id       BLOB NOT NULL,
    trust_version  BIGINT NOT NULL,       -- of the policy whose recipients it is sealed to
    size           BIGINT NOT NULL,
    meta_sha256    BLOB NOT NULL,
    index_len      BIGINT NOT NULL,
    directory_len  BIGINT NOT NULL,
    header_len     BIGINT NOT NULL,
    state          TEXT NOT NULL CHECK (state IN ('signed', 'stored', 'live', 'retiring', 'doomed', 'deleting',
                                                    'deleted', 'missing', 'damaged')),
    signed_ms      BIGINT NOT NULL,       -- of the newest signature
    stored_ms      BIGINT,
    PRIMARY KEY (series_id, ordinal)
);
CREATE UNIQUE INDEX packs_sha256 ON packs (series_id, sha256);
-- What is signed or stored and not yet part of a backup: few rows, asked for often.
CREATE INDEX packs_signed ON packs (series_id, origin_backup) WHERE state = 'signed';
CREATE INDEX packs_stored ON packs (series_id, ordinal) WHERE state = 'stored';

-- Begun backups, and what became of them. What Prepare adds is NULL before it.
CREATE TABLE backups (
    id               TEXT PRIMARY KEY NOT NULL,
    series_id        TEXT NOT NULL REFERENCES series (id),
    agent_id         TEXT NOT NULL REFERENCES agents (id),
    run_id           TEXT NOT NULL,
    attempt          BIGINT NOT NULL,
    state            TEXT NOT NULL CHECK (state IN ('begun', 'committing', 'committed', 'expired', 'deleting', 'deleted',
                                                    'abandoned')),
    sequence         BIGINT NOT NULL,      -- as given by Begin; taken for good by Prepare
    previous_sha256  BLOB,                 -- of the newest manifest known at Begin
    session_nonce    BLOB NOT NULL,
    epoch_id         BLOB NOT NULL,
    trust_version    BIGINT NOT NULL,
    kind             TEXT NOT NULL,        -- of the source
    created_ms       BIGINT NOT NULL,
    -- from Prepare on
    manifest_sha256  BLOB,
    manifest_size    BIGINT,
    public_sha256    BLOB,
    signed_until_ms  BIGINT,               -- the store may accept the manifest's PUT until then
    refs             BLOB,                 -- roaring bitmap of the ordinals of its packs
    packs            BIGINT,
    partial          BOOLEAN,
    raw_bytes        BIGINT,
    new_raw_bytes    BIGINT,
    new_stored_bytes BIGINT,
    recipients       TEXT,                 -- JSON: fingerprints, hex
    report           TEXT,                 -- JSON: warnings, streams, versions
    committed_ms     BIGINT,
    FOREIGN KEY (run_id, attempt) REFERENCES attempts (run_id, number)
);
-- A sequence number is never given to two manifests.
CREATE UNIQUE INDEX backups_sequence ON backups (series_id, sequence) WHERE state <> 'begun';
CREATE INDEX backups_committed ON backups (committed_ms, id) WHERE state = 'committed';
CREATE INDEX backups_series_committed ON backups (series_id, sequence) WHERE state = 'committed';
CREATE INDEX backups_committing ON backups (series_id) WHERE state = 'committing';
CREATE INDEX backups_abandoned ON backups (signed_until_ms) WHERE state = 'abandoned';

-- When all packs of a series were last seen in the bucket.
CREATE TABLE series_listings (
    series_id TEXT PRIMARY KEY NOT NULL REFERENCES series (id),
    listed_ms BIGINT NOT NULL
);

-- Restores that are under way: what they read is not deleted before they end.
CREATE TABLE restore_leases (
    id         TEXT PRIMARY KEY NOT NULL,
    backup_id  TEXT NOT NULL REFERENCES backups (id),
    opened_by  TEXT NOT NULL,
    opened_ms  BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL,
    closed_ms  BIGINT
);
