"""Attribution methods. A first-order method is a game, so its meta-attributions come for free."""
