BEGIN TRANSACTION;
CREATE TABLE assignments (
    round INTEGER NOT NULL, client TEXT NOT NULL, attempt INTEGER NOT NULL, version INTEGER NOT NULL DEFAULT -1, PRIMARY KEY (round, client)
) STRICT;
INSERT INTO "assignments" VALUES(1,'a',0,0);
INSERT INTO "assignments" VALUES(1,'b',0,0);
INSERT INTO "assignments" VALUES(2,'a',0,1);
INSERT INTO "assignments" VALUES(2,'b',0,1);
CREATE TABLE clients (
    client TEXT PRIMARY KEY, runtime TEXT NOT NULL, examples INTEGER NOT NULL, seen REAL NOT NULL
) STRICT;
INSERT INTO "clients" VALUES('a','onnx',9,1.79525809359018826477e+09);
INSERT INTO "clients" VALUES('b','onnx',9,1.79525809360860824585e+09);
CREATE TABLE codes (
    hash TEXT PRIMARY KEY, name TEXT NOT NULL, created REAL NOT NULL, expires REAL NOT NULL, key TEXT, used REAL,
    label TEXT NOT NULL
) STRICT;
CREATE TABLE devices (
    key TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, enrolled REAL NOT NULL, code TEXT, revoked REAL,
    label TEXT NOT NULL
) STRICT;
INSERT INTO "devices" VALUES('ed25519:6uHIeTtVl8Sz9JDnasMRcsQ5aQ-O4UFCu4UaYfmknw4','a',1.79525809321766519543e+09,NULL,NULL,'');
INSERT INTO "devices" VALUES('ed25519:Yn8X2JPlaXpLoiCLyAsCkuf1jYEg6zU8G1VCnbnGsZY','b',1.79525809339162492747e+09,NULL,NULL,'');
CREATE TABLE evaluations (
    version INTEGER NOT NULL, client TEXT NOT NULL, loss_sum REAL NOT NULL, tokens INTEGER NOT NULL,
    correct INTEGER NOT NULL, PRIMARY KEY (version, client)
) STRICT;
INSERT INTO "evaluations" VALUES(1,'a',15.0,10,0);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
INSERT INTO "meta" VALUES('task','{
 "client": {
  "beta1": 0.9,
  "beta2": 0.999,
  "clip_norm": 1.0,
  "eps": 1e-08,
  "error_feedback": true,
  "learning_rate": 0.001,
  "momentum": 0.9,
  "optimizer": "adamw",
  "steps": 10,
  "weight_decay": 0.0
 },
 "defence": {
  "clip": "none",
  "device_share": 1.0,
  "issuer_share": 1.0,
  "quantile": 0.5
 },
 "download": {
  "args": {
   "error": 0.1
  },
  "name": "levels"
 },
 "personal": {
  "blocks": 1,
  "policy": "none",
  "tensors": ""
 },
 "round": {
  "buffer": 10,
  "concurrency": 0,
  "deadline_s": 600.0,
  "max_norm": 10000.0,
  "max_staleness": 20,
  "minimum": 0,
  "mode": "sync",
  "over_selection": 1.0,
  "pool_s": 5.0,
  "retry_s": 0.05,
  "selection": "first-come",
  "staleness": "polynomial",
  "staleness_factor": 0.5,
  "staleness_power": 0.5,
  "target": 2
 },
 "server": {
  "args": {
   "learning_rate": 1.0
  },
  "name": "sgd"
 },
 "since": "version",
 "strategy": {
  "args": {},
  "name": "fedavg"
 },
 "task": {
  "bundle": "/bundle",
  "keep_updates": false,
  "name": "test",
  "publish_every": 1,
  "rank": 0,
  "rounds": 3,
  "seed": 7
 },
 "upload": {
  "args": {},
  "name": "sign"
 }
}');
INSERT INTO "meta" VALUES('bundle','b9eac0667a13b3ecf7632584e4abfca41b4b805ece9bf23c098ffedd40f3aef9');
INSERT INTO "meta" VALUES('layout','3d60c8fbf6ac57efbc2805fcb648e33beec71524687c49d53fa8110932083b56');
CREATE TABLE personal_evaluations (
    version INTEGER NOT NULL, client TEXT NOT NULL, loss_sum REAL NOT NULL, tokens INTEGER NOT NULL,
    correct INTEGER NOT NULL, PRIMARY KEY (version, client)
) STRICT;
CREATE TABLE rounds (round INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, state TEXT NOT NULL) STRICT;
INSERT INTO "rounds" VALUES(1,0,'published');
INSERT INTO "rounds" VALUES(2,0,'open');
CREATE TABLE tokens (
    hash TEXT PRIMARY KEY, role TEXT NOT NULL, label TEXT NOT NULL UNIQUE, created REAL NOT NULL, expires REAL NOT NULL
) STRICT;
CREATE TABLE traffic (
    client TEXT NOT NULL, route TEXT NOT NULL, up INTEGER NOT NULL, down INTEGER NOT NULL, PRIMARY KEY (client, route)
) STRICT;
INSERT INTO "traffic" VALUES('','checkin',0,274);
INSERT INTO "traffic" VALUES('','enroll',32,20);
INSERT INTO "traffic" VALUES('','hello',0,252);
INSERT INTO "traffic" VALUES('a','adapter',0,642);
INSERT INTO "traffic" VALUES('a','checkin',224,180);
INSERT INTO "traffic" VALUES('a','evaluation',139,0);
INSERT INTO "traffic" VALUES('a','task',0,1148);
INSERT INTO "traffic" VALUES('a','update',688,268);
INSERT INTO "traffic" VALUES('b','adapter',0,169);
INSERT INTO "traffic" VALUES('b','checkin',224,180);
INSERT INTO "traffic" VALUES('b','task',0,574);
INSERT INTO "traffic" VALUES('b','update',344,134);
CREATE TABLE updates (
    round INTEGER NOT NULL, client TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
    examples INTEGER NOT NULL, steps INTEGER NOT NULL, loss_before REAL NOT NULL, loss_after REAL NOT NULL,
    seconds REAL NOT NULL, stored INTEGER NOT NULL, version INTEGER NOT NULL DEFAULT -1, counted_in INTEGER NOT NULL DEFAULT -1, segment INTEGER, position INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (round, client)
) STRICT;
INSERT INTO "updates" VALUES(1,'a','a3af62f479634706abfb70a7b06aef62f10d1304a8e5556696c976936921c7dc',344,9,1,2.0,1.0,0.1,0,0,1,1,0);
INSERT INTO "updates" VALUES(1,'b','dd225a04af37e6eb92f88c2dbe5a8859bd897c3ff5241b0486cf1656b6632fec',344,9,1,2.0,1.0,0.1,0,0,1,1,344);
INSERT INTO "updates" VALUES(2,'a','cf5e526e1d2b449c4e365c269b420490827a1871a14580d5123da7b3a6b2f115',344,9,1,2.0,1.0,0.1,1,1,2,2,0);
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, parent INTEGER UNIQUE, base INTEGER NOT NULL, step TEXT, step_bytes INTEGER NOT NULL,
    state TEXT, digest TEXT NOT NULL, updates INTEGER NOT NULL, created REAL NOT NULL
, sections TEXT NOT NULL DEFAULT '') STRICT;
INSERT INTO "versions" VALUES(0,NULL,0,NULL,0,NULL,'bcb88d4862259e820ab57720e22779081b0f57901758a74f9a4165e4b69b7241',0,1.79525809292094826697e+09,'');
INSERT INTO "versions" VALUES(1,0,0,'b8254efe7cbfa4cd5bd55885174701cee3f215dd93ff05adf176c18fa0a3557c',68,'ac5b7ee44069e37563928fd43a6cb3c2993f0d69c409926ba896fdf0b862e0cd','efe39c534c2f6985e1c80240413570d8bb7ea1e2b2a30612b24013df9456b397',2,1.79525809350499486929e+09,'');
CREATE INDEX updates_of_version ON updates (counted_in);
CREATE INDEX assignments_of_client ON assignments (client, round);
COMMIT;
PRAGMA user_version=4;
