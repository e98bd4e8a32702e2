// Verifies a webhook. Arguments: secret, id, timestamp, signature header. Body on standard input.
import java.nio.charset.StandardCharsets;
import java.security.MessageDigest;
import java.time.Instant;
import java.util.Base64;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

class Verify {
    static boolean verify(String secret, String id, String timestamp, String header, byte[] body)
            throws Exception {
        long age = Instant.now().getEpochSecond() - Long.parseLong(timestamp);
        if (Math.abs(age) > 300) return false;
        byte[] key = Base64.getDecoder().decode(secret.replaceFirst("^whsec_", ""));
        Mac mac = Mac.getInstance("HmacSHA256");
        mac.init(new SecretKeySpec(key, "HmacSHA256"));
        mac.update((id + "." + timestamp + ".").getBytes(StandardCharsets.UTF_8));
        String expected = "v1," + Base64.getEncoder().encodeToString(mac.doFinal(body));
        boolean good = false;
        for (String part : header.split(" ")) {
            good |= MessageDigest.isEqual(part.getBytes(), expected.getBytes());
        }
        return good;
    }

    public static void main(String[] args) throws Exception {
        boolean good = verify(args[0], args[1], args[2], args[3], System.in.readAllBytes());
        System.exit(good ? 0 : 1);
    }
}
