INSERT INTO vestry.lanes (lane, privacy, latency, pool)
SELECT concat_ws('.', p, l, o), p, l, o
FROM unnest(ARRAY['private', 'shareable']) p, unnest(ARRAY['interactive', 'bulk']) l,
     unnest(ARRAY['gpu', 'cpu', 'cloud']) o
WHERE NOT (p = 'private' AND o = 'cloud');
