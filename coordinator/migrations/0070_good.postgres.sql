CREATE FUNCTION backups_good_follow() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    of_series TEXT := CASE TG_OP WHEN 'DELETE' THEN OLD.series_id ELSE NEW.series_id END;
BEGIN
    -- The newest is looked up under the lock: what others have committed before it is seen then.
    PERFORM 1 FROM series_totals WHERE series_id = of_series FOR NO KEY UPDATE;
    UPDATE series_totals SET (good_backup_id, good_backup_ms) = (SELECT b.id, b.created_ms FROM backups b
        WHERE b.series_id = of_series
            AND b.state = 'committed' AND NOT (b.partial OR b.manifest_lost OR b.lost_packs > 0)
        ORDER BY b.sequence DESC LIMIT 1) WHERE series_id = of_series;
    RETURN NULL;
END
$$;
CREATE TRIGGER backups_good_added AFTER INSERT ON backups FOR EACH ROW
    WHEN (NEW.state = 'committed' AND NOT (NEW.partial OR NEW.manifest_lost OR NEW.lost_packs > 0))
    EXECUTE FUNCTION backups_good_follow();
CREATE TRIGGER backups_good_changes AFTER UPDATE OF state, partial, manifest_lost, lost_packs ON backups FOR EACH ROW
    WHEN (COALESCE((OLD.state = 'committed' AND NOT (OLD.partial OR OLD.manifest_lost OR OLD.lost_packs > 0)), FALSE)
        <> COALESCE((NEW.state = 'committed' AND NOT (NEW.partial OR NEW.manifest_lost OR NEW.lost_packs > 0)), FALSE))
    EXECUTE FUNCTION backups_good_follow();
CREATE TRIGGER backups_good_removed AFTER DELETE ON backups FOR EACH ROW
    WHEN (OLD.state = 'committed' AND NOT (OLD.partial OR OLD.manifest_lost OR OLD.lost_packs > 0))
    EXECUTE FUNCTION backups_good_follow();
