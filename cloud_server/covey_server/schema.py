"""The database's tables, as numbered steps: element i of `SCHEMA` brings a file from schema i to i + 1.

A step that was released is never edited; whatever comes later is a new step at the end. Each runs in one transaction
with the change of the file's number, so a server that is killed in the middle of it finds the old schema and begins the
step again. tests/server/databases holds a run of every earlier schema, and tests open each.

    meta         the task as resolved, the bundle, the layout
    rounds       the work on each version; state: open, frozen (its set of updates is final), published
    assignments  who was asked to train what, so that a restart knows whose update is welcome
    updates      one row for each (round, client), kept after its bytes are gone: a retry is answered from it
    versions     each published adapter: its coded step, and for the head the server's whole state
    evaluations  held-out losses, one for each (version, client); personal_evaluations with the devices' own tensors
    clients      what devices said about themselves
    traffic      bodies in bytes, by device and route
    codes        one-time codes, as hashes
    devices      enrolled keys and the names that they have
    tokens       administrators' tokens, as hashes
    audit        what operators did, each entry chained to the one before
"""

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE rounds (round INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, state TEXT NOT NULL) STRICT;
CREATE TABLE assignments (
    round INTEGER NOT NULL, client TEXT NOT NULL, attempt INTEGER NOT NULL, PRIMARY KEY (round, client)
) STRICT;
CREATE TABLE updates (
    round INTEGER NOT NULL, client TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
    examples INTEGER NOT NULL, steps INTEGER NOT NULL, loss_before REAL NOT NULL, loss_after REAL NOT NULL,
    seconds REAL NOT NULL, stored INTEGER NOT NULL, PRIMARY KEY (round, client)
) STRICT;
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, parent INTEGER UNIQUE, base INTEGER NOT NULL, step TEXT, step_bytes INTEGER NOT NULL,
    state TEXT, digest TEXT NOT NULL, updates INTEGER NOT NULL, created REAL NOT NULL
) STRICT;
CREATE TABLE evaluations (
    version INTEGER NOT NULL, client TEXT NOT NULL, loss_sum REAL NOT NULL, tokens INTEGER NOT NULL,
    correct INTEGER NOT NULL, PRIMARY KEY (version, client)
) STRICT;
CREATE TABLE clients (
    client TEXT PRIMARY KEY, runtime TEXT NOT NULL, examples INTEGER NOT NULL, seen REAL NOT NULL
) STRICT;
CREATE TABLE traffic (
    client TEXT NOT NULL, route TEXT NOT NULL, up INTEGER NOT NULL, down INTEGER NOT NULL, PRIMARY KEY (client, route)
) STRICT;
"""

# Asynchronous buffers, and updates in segments. `version` is what a device trained from, `counted_in` the version that
# an update is part of; `round` stays the number of the assignment. `segment` NULL: the bytes are a blob of their own.
BUFFERS = """
ALTER TABLE assignments ADD COLUMN version INTEGER NOT NULL DEFAULT -1;
UPDATE assignments SET version = round - 1;
ALTER TABLE updates ADD COLUMN version INTEGER NOT NULL DEFAULT -1;
ALTER TABLE updates ADD COLUMN counted_in INTEGER NOT NULL DEFAULT -1;
ALTER TABLE updates ADD COLUMN segment INTEGER;
ALTER TABLE updates ADD COLUMN position INTEGER NOT NULL DEFAULT 0;
UPDATE updates SET version = round - 1, counted_in = round;
CREATE INDEX updates_of_version ON updates (counted_in);
CREATE INDEX assignments_of_client ON assignments (client, round);
"""

# Who may come in; the tables are described in access.py.
ACCESS = """
CREATE TABLE codes (
    hash TEXT PRIMARY KEY, name TEXT NOT NULL, created REAL NOT NULL, expires REAL NOT NULL, key TEXT, used REAL,
    label TEXT NOT NULL
) STRICT;
CREATE TABLE devices (
    key TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, enrolled REAL NOT NULL, code TEXT, revoked REAL,
    label TEXT NOT NULL
) STRICT;
CREATE TABLE tokens (
    hash TEXT PRIMARY KEY, role TEXT NOT NULL, label TEXT NOT NULL UNIQUE, created REAL NOT NULL, expires REAL NOT NULL
) STRICT;
"""

# Held-out losses of devices with what they keep to themselves, beside those of the model that all get.
PERSONAL = """
CREATE TABLE personal_evaluations (
    version INTEGER NOT NULL, client TEXT NOT NULL, loss_sum REAL NOT NULL, tokens INTEGER NOT NULL,
    correct INTEGER NOT NULL, PRIMARY KEY (version, client)
) STRICT;
"""

# Versions whose parts are downloaded apart, as those of cohorts: see sections.py.
SECTIONS = """
ALTER TABLE versions ADD COLUMN sections TEXT NOT NULL DEFAULT '';
"""

# What operators did: see audit.py.
AUDIT = """
CREATE TABLE audit (
    number INTEGER PRIMARY KEY, time REAL NOT NULL, who TEXT NOT NULL, did TEXT NOT NULL, what TEXT NOT NULL,
    chain TEXT NOT NULL
) STRICT;
"""

SCHEMA = [TABLES, BUFFERS, PERSONAL + ACCESS, SECTIONS, AUDIT]
