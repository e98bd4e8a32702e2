# Verifies a webhook. Arguments: secret, id, timestamp, signature header. Body on standard input.
require "base64"
require "openssl"

def verify(secret, id, timestamp, header, body)
  return false if (Time.now.to_i - Integer(timestamp, 10)).abs > 300
  key = Base64.strict_decode64(secret.delete_prefix("whsec_"))
  mac = OpenSSL::HMAC.digest("SHA256", key, "#{id}.#{timestamp}.".b + body)
  expected = "v1,#{Base64.strict_encode64(mac)}"
  header.split(" ").any? { |part| OpenSSL.secure_compare(part, expected) }
end

exit(verify(*ARGV.first(4), $stdin.binmode.read))
