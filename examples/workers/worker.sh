#!/bin/sh
# Handles one message, for `balto work QUEUE -- ./worker.sh`. The event is on standard input.
# Exit code 0 acknowledges the message; any other returns it to the queue.
set -eu
event=$(cat)
echo "handled $BALTO_EVENT_ID $BALTO_EVENT_TYPE $event"
