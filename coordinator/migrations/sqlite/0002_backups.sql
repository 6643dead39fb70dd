-- Packs, backups and restores (docs/format.md, Writing and Deleting).

CREATE TABLE packs (
    series_id      TEXT NOT NULL REFERENCES series (id),
    sha256         BLOB NOT NULL,
    ordinal        BIGINT NOT NULL,       -- position in the bitmaps of this series' backups
    pack_id        TEXT NOT NULL,
    origin_backup  TEXT NOT NULL,
    epoch_id       BLOB NOT NULL,
    size           BIGINT NOT NULL,
    meta_sha256    BLOB NOT NULL,
    index_len      BIGINT NOT NULL,
    directory_len  BIGINT NOT NULL,
    header_len     BIGINT NOT NULL,
    state          TEXT NOT NULL,
    signed_ms      BIGINT NOT NULL,       -- of the newest signature
    stored_ms      BIGINT,
    PRIMARY KEY (series_id, sha256)
);
CREATE UNIQUE INDEX packs_ordinal ON packs (series_id, ordinal);

CREATE TABLE backups (
    id              TEXT PRIMARY KEY NOT NULL,
    series_id       TEXT NOT NULL REFERENCES series (id),
    agent_id        TEXT NOT NULL REFERENCES agents (id),
    run_id          TEXT NOT NULL,
    attempt         BIGINT NOT NULL,
    state           TEXT NOT NULL,
    created_ms      BIGINT NOT NULL,
    FOREIGN KEY (run_id, attempt) REFERENCES attempts (run_id, number)
);

CREATE TABLE restore_leases (
    id          TEXT PRIMARY KEY NOT NULL,
    backup_id   TEXT NOT NULL REFERENCES backups (id),
    expires_ms  BIGINT NOT NULL,
    opened_by   TEXT NOT NULL
);
