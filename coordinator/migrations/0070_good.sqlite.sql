CREATE TRIGGER backups_good_added AFTER INSERT ON backups
    WHEN (NEW.state = 'committed' AND NOT (NEW.partial OR NEW.manifest_lost OR NEW.lost_packs > 0)) BEGIN
    UPDATE series_totals SET (good_backup_id, good_backup_ms) = (SELECT b.id, b.created_ms FROM backups b
        WHERE b.series_id = NEW.series_id
            AND b.state = 'committed' AND NOT (b.partial OR b.manifest_lost OR b.lost_packs > 0)
        ORDER BY b.sequence DESC LIMIT 1) WHERE series_id = NEW.series_id;
END;
CREATE TRIGGER backups_good_changes AFTER UPDATE OF state, partial, manifest_lost, lost_packs ON backups
    WHEN COALESCE((OLD.state = 'committed' AND NOT (OLD.partial OR OLD.manifest_lost OR OLD.lost_packs > 0)), FALSE)
        <> COALESCE((NEW.state = 'committed' AND NOT (NEW.partial OR NEW.manifest_lost OR NEW.lost_packs > 0)), FALSE) BEGIN
    UPDATE series_totals SET (good_backup_id, good_backup_ms) = (SELECT b.id, b.created_ms FROM backups b
        WHERE b.series_id = NEW.series_id
            AND b.state = 'committed' AND NOT (b.partial OR b.manifest_lost OR b.lost_packs > 0)
        ORDER BY b.sequence DESC LIMIT 1) WHERE series_id = NEW.series_id;
END;
CREATE TRIGGER backups_good_removed AFTER DELETE ON backups
    WHEN (OLD.state = 'committed' AND NOT (OLD.partial OR OLD.manifest_lost OR OLD.lost_packs > 0)) BEGIN
    UPDATE series_totals SET (good_backup_id, good_backup_ms) = (SELECT b.id, b.created_ms FROM backups b
        WHERE b.series_id = OLD.series_id
            AND b.state = 'committed' AND NOT (b.partial OR b.manifest_lost OR b.lost_packs > 0)
        ORDER BY b.sequence DESC LIMIT 1) WHERE series_id = OLD.series_id;
END;
