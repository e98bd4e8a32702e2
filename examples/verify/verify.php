<?php
// Verifies a webhook. Arguments: secret, id, timestamp, signature header. Body on standard input.

function verify(string $secret, string $id, string $timestamp, string $header, string $body): bool
{
    if (abs(time() - (int) $timestamp) > 300) {
        return false;
    }
    $key = base64_decode(preg_replace('/^whsec_/', '', $secret), true);
    $expected = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$timestamp.$body", $key, true));
    foreach (explode(' ', $header) as $part) {
        if (hash_equals($expected, $part)) {
            return true;
        }
    }
    return false;
}

exit(verify($argv[1], $argv[2], $argv[3], $argv[4], stream_get_contents(STDIN)) ? 0 : 1);
