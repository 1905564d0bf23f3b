// Allocation churn with checksums, as churn.js: heap arrays, strings and direct buffers, by several threads.
import java.nio.ByteBuffer;
import java.util.*;
import java.util.concurrent.*;
import java.util.zip.CRC32;

public class Churn {
        static final int PAGE_BYTES = 4096;
        static final int KEYS = 600;

        static List<String> churn(int seed, int rounds) {
                Random random = new Random(seed);
                Map<Integer, byte[]> arrays = new TreeMap<>();
                Map<Integer, ByteBuffer> direct = new TreeMap<>();
                List<String> lines = new ArrayList<>();
                for (int round = 0; round < rounds; round++) {
                        for (int i = 0; i < 150; i++) {
                                byte[] a = new byte[PAGE_BYTES * (1 + random.nextInt(20))];
                                Arrays.fill(a, (byte) random.nextInt(3));
                                for (int at = 0; at < a.length; at += PAGE_BYTES * (1 + random.nextInt(3)))
                                        a[at] = (byte) random.nextInt(16);
                                arrays.put(random.nextInt(KEYS), a);
                                ByteBuffer b = ByteBuffer.allocateDirect(PAGE_BYTES * (1 + random.nextInt(8)));
                                for (int at = 0; at < b.capacity(); at += PAGE_BYTES)
                                        b.putInt(at, random.nextInt(8));
                                direct.put(random.nextInt(KEYS / 4), b);
                        }
                        CRC32 crc = new CRC32();
                        for (byte[] a : arrays.values())
                                crc.update(a);
                        for (ByteBuffer b : direct.values())
                                crc.update(b.duplicate());
                        lines.add(seed + " " + round + " " + Long.toHexString(crc.getValue()));
                        for (int i = 0; i < 100; i++)
                                arrays.remove(random.nextInt(KEYS));
                }
                return lines;
        }

        public static void main(String[] arguments) throws Exception {
                int rounds = Integer.parseInt(arguments[0]);
                ExecutorService threads = Executors.newFixedThreadPool(3);
                List<Future<List<String>>> results = new ArrayList<>();
                for (int seed = 1; seed <= 3; seed++) {
                        int own = seed;
                        results.add(threads.submit(() -> churn(own, rounds)));
                }
                for (Future<List<String>> result : results)
                        result.get().forEach(System.out::println);
                threads.shutdown();
        }
}
