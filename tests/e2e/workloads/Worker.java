// One worker: builds a table of records and a blob, says their checksum, and says it again for every line on stdin.
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.*;
import java.util.zip.CRC32;

public class Worker {
        static final int RECORDS = 100_000;
        static final int BLOB_BYTES = 16 << 20;

        record Entry(int id, String name, String mail, double score, List<String> tags) {}

        static long checksum(byte[] blob, Map<String, Entry> table) {
                CRC32 sum = new CRC32();
                sum.update(blob);
                for (Map.Entry<String, Entry> e : table.entrySet())
                        sum.update((e.getKey() + e.getValue()).getBytes());
                return sum.getValue();
        }

        public static void main(String[] arguments) throws Exception {
                byte[] blob = new byte[BLOB_BYTES];
                new Random(20240229).nextBytes(blob);
                Map<String, Entry> table = new LinkedHashMap<>();
                for (int i = 0; i < RECORDS; i++)
                        table.put("user" + i, new Entry(i, "Name " + i * 7919L % 100003, "user" + i + "@example.org", i * 0.37,
                                List.of("group" + i % 97, "team" + i % 1009, "city" + i * 31L % 4999)));
                BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
                do
                        System.out.println(checksum(blob, table));
                while (in.readLine() != null);
        }
}
