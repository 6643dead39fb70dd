//! What is backed up: two versions of a plain dump of a generated order database.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sealift_tests::scratch::Scratch;
use sealift_tests::services::Postgres;

/// Two files, and the directory they lie in.
pub struct Input {
    /// The first version.
    pub first: PathBuf,
    /// The same with 1,500 scattered rows changed.
    pub second: PathBuf,
    /// Room for restored copies.
    pub scratch: Scratch,
}

/// Bytes of dump per order: the order's own line and its four items'.
const BYTES_PER_ORDER: u64 = 730;

impl Input {
    /// Loads a database of about `megabytes` and dumps it twice. The same every time: nothing in it is random.
    pub fn generate(megabytes: u64) -> Self {
        let scratch = Scratch::new("bench");
        let server = Postgres::start();
        server.create_database("shop");
        let orders = megabytes * 1_000_000 / BYTES_PER_ORDER;
        server.script("shop", &schema(orders));
        let dump = |name: &str| {
            let path = scratch.join(name);
            let mut command = server.client("pg_dump");
            command.args(["--no-sync", "-d", "shop"]).stdin(Stdio::null());
            command.stdout(File::create(&path).expect("dump file"));
            assert!(command.status().expect("start pg_dump").success());
            path
        };
        let first = dump("first.sql");
        let step = orders / 1500;
        server
            .sql("shop", &format!("UPDATE orders SET comment = 'changed ' || comment WHERE id % {step} = 1"));
        // Rows move to the end of the table when they change; a real table is in no order either, but its rows stay.
        server.sql("shop", "CLUSTER orders USING orders_pkey");
        let second = dump("second.sql");
        Self { first, second, scratch }
    }

    /// Size of the first version.
    pub fn bytes(&self) -> u64 {
        self.first.metadata().expect("dump").len()
    }
}

/// Text as TPC-H has it: words from a small vocabulary, numbers, dates, keys.
fn schema(orders: u64) -> String {
    format!(
        "CREATE FUNCTION words(seed bigint, n int) RETURNS text LANGUAGE sql IMMUTABLE AS $$
           SELECT string_agg((ARRAY['furiously','quickly','carefully','blithely','ironic','final','bold','express','regular','special',
             'pending','silent','even','unusual','deposits','requests','packages','accounts','instructions','theodolites','foxes',
             'pinto','beans','dependencies','platelets','sleep','haggle','nag','cajole','along','across','above','against','the','slyly'])
             [1 + (hashint8(seed * 131 + i) & 2147483647) % 35], ' ') FROM generate_series(1, n) i $$;
         CREATE TABLE orders (id bigint, customer int, status char(1), total numeric(12,2), placed date, priority text, clerk text, comment text);
         CREATE TABLE items (order_id bigint, line int, part int, supplier int, quantity numeric(6,2), price numeric(12,2), discount numeric(4,2),
           tax numeric(4,2), flag char(1), status char(1), shipped date, committed date, received date, instruction text, mode text, comment text);
         INSERT INTO orders SELECT g, hashint8(g) & 262143, substr('OFP', 1 + (hashint8(g + 1) & 1023) % 3, 1), (hashint8(g + 2) & 67108863) / 100.0,
           date '1992-01-01' + (hashint8(g + 3) & 2047), (ARRAY['1-URGENT','2-HIGH','3-MEDIUM','4-NOT SPECIFIED','5-LOW'])[1 + (hashint8(g + 4) & 1023) % 5],
           'Clerk#' || lpad(((hashint8(g + 5) & 1023))::text, 9, '0'), words(g, 7) FROM generate_series(1, {orders}) g;
         INSERT INTO items SELECT g, l, hashint8(g * 4 + l) & 262143, hashint8(g * 5 + l) & 16383, 1 + (hashint8(g * 6 + l) & 63), (hashint8(g * 7 + l) & 8388607) / 100.0,
           ((hashint8(g * 8 + l) & 1023) % 11) / 100.0, ((hashint8(g * 9 + l) & 1023) % 9) / 100.0, substr('ANR', 1 + (hashint8(g + l) & 1023) % 3, 1), 'O',
           date '1992-01-01' + (hashint8(g * 10 + l) & 2047), date '1992-02-01' + (hashint8(g * 11 + l) & 2047), date '1992-03-01' + (hashint8(g * 12 + l) & 2047),
           (ARRAY['DELIVER IN PERSON','COLLECT COD','NONE','TAKE BACK RETURN'])[1 + (hashint8(g * 13 + l) & 3)],
           (ARRAY['AIR','FOB','MAIL','RAIL','SHIP','TRUCK','REG AIR'])[1 + (hashint8(g * 14 + l) & 1023) % 7], words(g * 17 + l, 4)
           FROM generate_series(1, {orders}) g, generate_series(1, 4) l;
         ALTER TABLE orders ADD PRIMARY KEY (id);
         CLUSTER orders USING orders_pkey;"
    )
}

/// Panics where two files differ.
pub fn assert_same(one: &Path, other: &Path) {
    let open = |path: &Path| BufReader::with_capacity(1 << 20, File::open(path).expect("open"));
    assert_eq!(one.metadata().expect("file").len(), other.metadata().expect("file").len(), "lengths differ");
    let (mut one, mut other) = (open(one), open(other));
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let n = one.read(&mut a).expect("read");
        if n == 0 {
            return;
        }
        other.read_exact(&mut b[..n]).expect("read");
        assert!(a[..n] == b[..n], "restored bytes differ");
    }
}
