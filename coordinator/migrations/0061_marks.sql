-- Two copies of one database that both go on count the same marks: each mark says which of them counted it.
ALTER TABLE generation ADD COLUMN mark_nonce BIGINT NOT NULL DEFAULT 0;

-- Marks alone say now whether the database was set back; before, deletion had numbers of its own.
DELETE FROM installation WHERE name IN ('deletion_generations', 'deletion_generation_different');
