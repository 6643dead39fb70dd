-- The newest *good* backup of each series, by the one rule of src/store/backups.rs: committed, complete, its manifest and all of
-- its packs there and undamaged. Kept up to date by triggers (0070_good.sqlite.sql, 0070_good.postgres.sql).
ALTER TABLE series_totals ADD COLUMN good_backup_id TEXT;
ALTER TABLE series_totals ADD COLUMN good_backup_ms BIGINT;              -- when that was begun
CREATE INDEX backups_good ON backups (series_id, sequence)
    WHERE state = 'committed' AND NOT (partial OR manifest_lost OR lost_packs > 0);
UPDATE series_totals SET (good_backup_id, good_backup_ms) = (SELECT b.id, b.created_ms FROM backups b
    WHERE b.series_id = series_totals.series_id
        AND b.state = 'committed' AND NOT (b.partial OR b.manifest_lost OR b.lost_packs > 0)
    ORDER BY b.sequence DESC LIMIT 1);
