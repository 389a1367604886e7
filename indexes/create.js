// Creates axeq's indexes, for those whose application may not. Generated from axeq/rules/indexes.py.
// mongosh "mongodb://localhost:27017/shop" indexes/create.js
db.getCollection("jobs").createIndex({"queue": 1, "name": 1, "priority": 1, "available_at": 1, "version": 1, "lost": 1, "_id": 1}, {"name": "claim", "partialFilterExpression": {"available_at": {"$exists": true}}});
db.getCollection("jobs").createIndex({"queue": 1, "available_at": 1}, {"name": "due", "partialFilterExpression": {"available_at": {"$exists": true}}});
db.getCollection("jobs").createIndex({"name": 1, "label": 1}, {"name": "label", "unique": true, "partialFilterExpression": {"label": {"$exists": true}, "available_at": {"$exists": true}}});
db.getCollection("jobs").createIndex({"expire_at": 1}, {"name": "retention", "expireAfterSeconds": 0, "partialFilterExpression": {"expire_at": {"$exists": true}}});
db.getCollection("jobs").createIndex({"state": 1, "queue": 1, "finished_at": -1, "name": 1, "cause": 1}, {"name": "inspection", "partialFilterExpression": {"finished_at": {"$exists": true}}});
db.getCollection("jobs.isolations").createIndex({"until": 1}, {"name": "isolation", "expireAfterSeconds": 60});
