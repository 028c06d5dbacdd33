CREATE TABLE runs (
    position INTEGER PRIMARY KEY AUTOINCREMENT, -- order of creation
    id TEXT NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    model TEXT NOT NULL,
    dataset TEXT NOT NULL,
    display_name TEXT NOT NULL,
    labels TEXT NOT NULL,                       -- JSON object
    etag TEXT NOT NULL,
    revision INTEGER NOT NULL,                  -- newest in the log
    record BLOB NOT NULL,                       -- thaw.v1.Run
    report BLOB                                 -- thaw.v1.TrainableReport of the plan in force
  ) STRICT;
CREATE INDEX runs_by_state ON runs (state, position);
CREATE TABLE events (
    run TEXT NOT NULL,
    revision INTEGER NOT NULL,
    kind TEXT NOT NULL,
    step INTEGER NOT NULL,
    body BLOB NOT NULL,                         -- thaw.v1.RunEvent
    PRIMARY KEY (run, revision)
  ) STRICT, WITHOUT ROWID;
CREATE INDEX events_by_kind ON events (run, kind, step);
CREATE TABLE checkpoints (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    run TEXT NOT NULL,
    id TEXT NOT NULL,
    directory TEXT NOT NULL,
    body BLOB NOT NULL,                         -- thaw.v1.Checkpoint
    UNIQUE (run, id)
  ) STRICT;
CREATE TABLE models (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    directory TEXT NOT NULL,
    body BLOB NOT NULL,                         -- thaw.v1.Model
    description BLOB NOT NULL                   -- thaw.v1.ModelDescription
  ) STRICT;
CREATE TABLE datasets (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    body BLOB NOT NULL,                         -- thaw.v1.Dataset
    splits BLOB NOT NULL                        -- thaw.v1.DescribeDatasetResponse
  ) STRICT;
CREATE TABLE answers (
    request_id TEXT PRIMARY KEY,
    method TEXT NOT NULL,
    digest TEXT NOT NULL,
    response BLOB NOT NULL,
    created INTEGER NOT NULL                    -- seconds since 1970
  ) STRICT;
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    label TEXT NOT NULL,
    digest BLOB NOT NULL,                       -- SHA-256 of the secret
    create_time INTEGER NOT NULL,               -- milliseconds since 1970, as all three
    expire_time INTEGER,
    revoke_time INTEGER
  ) STRICT;
INSERT INTO runs VALUES (1, 'r', 5, 'models/m', 'datasets/d', 'first', '{"team":"a"}', 'e-yityup3dn6', 4, X'0a0672756e732f72120566697273741a090a047465616d120161221a0a086d6f64656c732f6d120a64617461736574732f64180920042805380468018201060880cae2d0069a010c652d79697479757033646e36', X'2802');
INSERT INTO events VALUES ('r', 1, 'state', 0, X'0801120b08ec9b96d80610c091e66022021001');
INSERT INTO events VALUES ('r', 2, 'metrics', 4, X'0802120b08ec9b96d80610c0a3da6218042a0b080411000000000000e03f');
INSERT INTO events VALUES ('r', 3, 'checkpoint', 4, X'0803120b08ec9b96d80610c0a3da62180442270a1972756e732f722f636865636b706f696e74732f737465702d34100420012a060880cae2d006');
INSERT INTO events VALUES ('r', 4, 'state', 4, X'0804120b08ec9b96d80610c0a3da621804220408031005');
INSERT INTO checkpoints VALUES (1, 'r', 'step-4', 'step-4', X'0a1972756e732f722f636865636b706f696e74732f737465702d34100420012a060880cae2d006');
INSERT INTO models VALUES (1, 'm', 'm', X'0a086d6f64656c732f6d1a137377697463685f7472616e73666f726d657273', X'');
INSERT INTO datasets VALUES (1, 'd', X'0a0a64617461736574732f64', X'');
INSERT INTO answers VALUES ('q', 'thaw.v1.CreateRunRequest', 'd1', X'0102', 1795526124);
PRAGMA user_version = 2;
