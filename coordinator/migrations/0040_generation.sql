-- Which database this is among the copies that may exist of it (docs/format.md, Generation). One row.
CREATE TABLE generation (
    one        BIGINT PRIMARY KEY NOT NULL CHECK (one = 1),
    number     BIGINT NOT NULL,          -- counts recoveries, from 1
    id         BIGINT NOT NULL,          -- random; part of every epoch
    mark       BIGINT NOT NULL,          -- the high-water mark: counted here first, then put into the bucket
    state      TEXT NOT NULL CHECK (state IN ('serving', 'recovering')),
    reason     TEXT NOT NULL,            -- why it recovers
    changed_ms BIGINT NOT NULL,
    backup_ms  BIGINT NOT NULL,          -- when the coordinator stored its own backup last; 0: never
    claimed_ms BIGINT NOT NULL           -- until when somebody is at it
);

-- Sequence numbers up to here may have been given away by a database that is lost.
ALTER TABLE series ADD COLUMN sequence_floor BIGINT NOT NULL DEFAULT 0;
