// One worker: builds a table of records and a blob, says their checksum, and says it again for every line on stdin.
'use strict';
const crypto = require('crypto');

const RECORDS = 40000;
const BLOB_BYTES = 16 << 20;

const key = Buffer.alloc(16, 7);
const blob = crypto.createCipheriv('aes-128-ctr', key, key).update(Buffer.alloc(BLOB_BYTES));
const table = new Map();
for (let i = 0; i < RECORDS; i++)
        table.set(`user${i}`, { id: i, name: `Name ${i * 7919 % 100003}`, mail: `user${i}@example.org`, score: i * 0.37,
                tags: [`group${i % 97}`, `team${i % 1009}`, `city${i * 31 % 4999}`] });

function checksum() {
        const hash = crypto.createHash('sha256').update(blob);
        for (const [name, record] of table)
                hash.update(name).update(JSON.stringify(record));
        return hash.digest('hex');
}

console.log(checksum());
process.stdin.on('data', (data) => {
        for (const byte of data)
                if (byte === 10)
                        console.log(checksum());
});
process.stdin.on('end', () => process.exit(0));
