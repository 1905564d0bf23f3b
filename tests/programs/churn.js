// Allocation churn with checksums: buffers outside the heap, strings and objects inside it, filled from a fixed sequence of
// numbers, kept for a while, checked, dropped. Prints one line a round; equal seeds print equal lines.
'use strict';
const crypto = require('crypto');
const { Worker, isMainThread, workerData, parentPort } = require('worker_threads');

function churn(seed, rounds) {
        let state = seed >>> 0;
        const next = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0);
        const kept = new Map();
        const lines = [];
        for (let round = 0; round < rounds; round++) {
                for (let i = 0; i < 120; i++) {
                        const bytes = 4096 * (1 + next() % 24);
                        const buffer = Buffer.alloc(bytes, next() % 3); // zeros, and repeated values
                        for (let at = 0; at < bytes; at += 4096 * (1 + next() % 3))
                                buffer.writeUInt32LE(next() % 16, at);
                        const object = { buffer, name: 'x'.repeat(next() % 2000), list: Array.from({ length: next() % 50 }, next) };
                        kept.set(next() % 700, object);
                }
                const hash = crypto.createHash('sha256');
                for (const key of [...kept.keys()].sort((a, b) => a - b)) {
                        const object = kept.get(key);
                        hash.update(object.buffer).update(object.name).update(object.list.join());
                }
                lines.push(`${seed} ${round} ${hash.digest('hex')}`);
                for (let i = 0; i < 100; i++)
                        kept.delete(next() % 700);
        }
        return lines;
}

if (isMainThread) {
        const rounds = Number(process.argv[2]);
        const workers = [11, 12].map((seed) => new Promise((resolve, reject) => {
                const worker = new Worker(__filename, { workerData: { seed, rounds } });
                worker.on('message', resolve).on('error', reject);
        }));
        const own = churn(1, rounds);
        Promise.all(workers).then((others) => console.log([own, ...others].flat().join('\n')));
} else {
        parentPort.postMessage(churn(workerData.seed, workerData.rounds));
}
