DROP TABLE dhara.schedule_fires;
DROP TABLE dhara.schedules;
