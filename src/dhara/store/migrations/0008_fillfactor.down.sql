ALTER TABLE dhara.tasks SET (fillfactor = 80);
