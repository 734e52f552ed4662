"""What each command takes, read before what it does is imported: nothing here needs torch. One file a command."""
